"""Rules of transfer: the factors as numbers, the base shape bit for bit, and the same function and
the same steps as a network that multiplies in its forward pass."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import models
from research.config import grid
from research.config.loading import load_config
from research.config.validation import problems
from research.errors import BadInput
from research.models import transformer
from research.parallel import device_mesh
from research.params import leaves_by_path, nest
from research.training.make_run import make_run
from research.training.optimizers import Optimizer
from research.training.resume import differences
from research.training.run import identity
from research.training.schedules import Choice
from research.training.step import Hyper, StepSpec
from research.training.tasks import task_class
from research.training.trainer import Trainer, host_batches, step_spec
from research.training.transfer import Factors, transfer_rule
from tests.training.test_golden_steps import FAMILIES, TASK
from tests.training.test_golden_steps import batch as batch_of
from tests.training.test_optimizers import NUMBERS

pytestmark = pytest.mark.usefixtures("barely_optimized")

BASE = {"width": 16, "depth": 2, "head_size": 4}
LANGUAGE = FAMILIES["transformer"] | {"width": 16, "depth": 2, "heads": 4, "kv_heads": 2}
LANGUAGE |= {"hidden": 32, "bias": True}


def section(rule, **changes):
    return {"rule": rule, **BASE, **changes}


def factors(model, rule, optimizer, inputs=None, **changes):
    inputs = jax.ShapeDtypeStruct((1, 16), np.int32) if inputs is None else inputs
    found, words = transfer_rule(section(rule, **changes), model, inputs, optimizer)
    return dict(found.factors), words


def larger(times, **changes):
    """The transformer of BASE, wider, deeper, and with larger heads."""
    fields = LANGUAGE | {"width": 16 * times, "depth": 2 * times, "hidden": 32 * times}
    return models.build("transformer", **fields | changes)


# The rules as published, of w before any multiplier is part of it: initialization relative to the
# base shape, learning rate, weight decay, epsilon, forward multiplier, with m the ratio of all of
# width, depth and, where heads keep their number, head size.
HIDDEN = (-0.5, -1, 1, -2)
ADAMW = {
    "embed/embedding": (0, 0, 0, -1, 0),
    "blocks/attn/key/kernel": (*HIDDEN, 0),
    "blocks/attn/query/kernel": (*HIDDEN, -0.5),  # of 1/sqrt(head size): sqrt(base) / head size
    "blocks/attn/out/kernel": (*HIDDEN, -1),
    "blocks/mlp/up/kernel": (*HIDDEN, 0),
    "blocks/mlp/down/kernel": (*HIDDEN, -1),
    "blocks/mlp/up/bias": (0, 0, 0, -2, 0),
    "blocks/mlp/down/bias": (0, 0, 0, -2, -1),
    "blocks/attn/query/bias": (0, 0, 0, -2, -0.5),
    "blocks/attn_norm/scale": (0, 0, 0, -2, 0),
    "final_norm/scale": (0, 0, 0, 0, 0),
    "head/kernel": (0, 0, 0, -1, -1),
}
# Muon's matrices: one rate, decay with 1/m, no epsilon; the rest is Adam's.
MUON = {
    path: (row[0], 0, -1, 0, row[4]) if "blocks" in path and path.endswith("kernel") else row
    for path, row in ADAMW.items()
}


@pytest.mark.parametrize("times", [1, 2, 4])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_factors_are_those_of_the_published_tables(times, tied, optimizer):
    model = larger(times, tie_embeddings=tied)
    rule = "spectral" if optimizer == "muon" else "complete_p"
    found, _ = factors(model, rule, optimizer)
    base = models.build("transformer", **LANGUAGE | {"tie_embeddings": tied})
    table = dict(MUON if optimizer == "muon" else ADAMW)
    if tied:
        del table["head/kernel"]
        table["final_norm/scale"] = (0, 0, 0, 0, -1)  # carries that of the logits
    drawn, tokens = [], jax.ShapeDtypeStruct((1, 16), np.int32)
    for each in (base, model):
        params = leaves_by_path(each.init(jax.random.key(0), jnp.zeros(tokens.shape, jnp.int32)))
        drawn.append({path: float(jnp.std(leaf)) for path, leaf in params.items()})
    for path, (init, *powers) in table.items():
        lr, decay, eps, forward = (pytest.approx(float(times) ** power) for power in powers)
        one = found[path]
        assert one[1:] == (forward, lr, decay, eps), path
        if drawn[0][path]:  # a rule of its own for what a family draws, not for zeros and ones
            ratio = one.initial / one.forward * drawn[1][path] / drawn[0][path]
            assert ratio == pytest.approx(float(times) ** init, rel=0.15), path
    if times > 1:  # the twin
        wrong, _ = factors(larger(1, tie_embeddings=tied), rule, optimizer)
        assert not all(wrong[path] == found[path] for path in table)


def test_width_alone_leaves_depth_and_vectors_as_they_are():
    found, words = factors(larger(4), "mup", "adamw")
    assert found["blocks/attn/out/kernel"] == Factors(lr=0.25, decay=4.0, eps=0.25)
    assert found["blocks/mlp_norm/scale"] == Factors(eps=0.25)
    assert "nothing follows the depth" in words
    assert factors(larger(4), "complete_p", "adamw")[0] != found


def test_what_has_no_epsilon_and_sgd_by_their_own_tables():
    assert {f.eps for f in factors(larger(4), "mup", "lion")[0].values()} == {1.0}
    sgd, _ = factors(larger(4), "mup", "sgd")
    assert sgd["blocks/mlp/up/kernel"] == Factors()
    assert sgd["blocks/mlp/up/bias"].lr == sgd["embed/embedding"].lr == 4.0
    assert sgd["head/kernel"] == Factors(initial=0.5, forward=0.25, lr=4.0, decay=0.25)
    # Of the weights as stored, with the gradient's own factor: 1/m, as in the other form.
    assert sgd["head/kernel"].lr * sgd["head/kernel"].forward ** 2 == pytest.approx(1 / 4)


def test_normalized_queries_carry_the_scale_of_attention_in_their_gain():
    found, _ = factors(larger(4, qk_norm=True), "complete_p", "adamw")
    assert found["blocks/attn/query_norm/scale"] == Factors(initial=0.5, forward=0.5, eps=0.25)
    assert found["blocks/attn/key_norm/scale"] == Factors(eps=0.25)
    assert found["blocks/attn/query/kernel"].forward == 1
    fixed = larger(4, qk_norm=True, heads=16, kv_heads=8)  # heads of the base's size
    assert factors(fixed, "complete_p", "adamw")[0]["blocks/attn/query_norm/scale"].forward == 1


@pytest.mark.parametrize("family", ["transformer", "encoder"])
def test_attention_follows_the_head_size_in_every_family_that_has_heads(family):
    fields = LANGUAGE | {"width": 32, "heads": 4, "kv_heads": 4, "hidden": 64, "bias": True}
    fields = {k: v for k, v in fields.items() if family == "transformer" or k != "attention"}
    found, words = factors(models.build(family, **fields), "mup", "adamw")
    assert found["blocks/attn/query/kernel"].forward == pytest.approx(2**-0.5)  # 8 over 4
    assert "width 32, head size 8: " in words
    small, _ = factors(models.build(family, **fields | {"heads": 8}), "mup", "adamw")
    assert small["blocks/attn/query/kernel"].forward == 1


def test_fan_in_is_a_matrix_s_own():
    odd = models.build("transformer", **LANGUAGE | {"width": 32, "hidden": 88})
    found, _ = factors(odd, "mup", "adamw")
    assert found["blocks/mlp/up/kernel"].lr == 1 / 2
    assert found["blocks/mlp/down/kernel"].lr == 1 / 2  # 88 over 44, the model's own ratio
    cnn = models.build("cnn", **FAMILIES["cnn"] | {"width": 16})
    image = jax.ShapeDtypeStruct((1, 8, 8, 1), np.float32)
    found, _ = factors(cnn, "mup", "adamw", image, width=8)
    assert found["conv0/kernel"].lr == 1.0  # the image has the channels that it has
    assert found["dense0/kernel"].lr == 1 / 2
    assert found["head/kernel"].forward == 1 / 2


def test_a_leaf_without_a_role_is_rejected(monkeypatch):
    rows = tuple((p.replace("query", "other"), role) for p, role in transformer.TRANSFER)
    monkeypatch.setattr(transformer, "TRANSFER", rows)
    with pytest.raises(BadInput, match="query/kernel' must match exactly one row of TRA"):
        factors(larger(2), "mup", "adamw")
    monkeypatch.undo()
    assert factors(larger(2), "mup", "adamw")


# The base shape.


def spec_of(family, optimizer, moved):
    name, options = TASK.get(family, ("classification", {}))
    chosen, numbers = Optimizer.from_config({"name": optimizer, **NUMBERS[optimizer]})
    model = models.build(family, **FAMILIES[family])
    inputs = batch_of(family)
    abstract = jax.ShapeDtypeStruct(inputs["inputs"].shape, inputs["inputs"].dtype)
    if moved is not None:
        moved, _ = transfer_rule(moved, model, abstract, optimizer)
    spec = StepSpec(model, task_class(name)(**options), chosen, Choice("constant"), transfer=moved)
    hyper = Hyper(0.01, 2.0, 10.0, 0.5, 0.9, None, optimizer=numbers, schedule={})
    return spec, jax.tree.map(jnp.float32, hyper), inputs


def three_steps(family, optimizer, moved):
    spec, hyper, inputs = spec_of(family, optimizer, moved)
    state, metrics = spec.init(jax.random.key(0), inputs["inputs"], hyper), {}
    step = jax.jit(spec.step)
    for _ in range(3):
        state, metrics = step(state, inputs, hyper)
    return jax.device_get((state, metrics))


# family, rule, optimizer, the base shape that is its own
CASES = [
    ("mlp", "complete_p", "adam", {"width": 16, "depth": 2, "head_size": None}),
    ("transformer", "complete_p", "adamw", {"width": 32, "depth": 2, "head_size": 8}),
    ("transformer", "spectral", "muon", {"width": 32, "depth": 2, "head_size": 8}),
    ("gru", "mup", "lion", {"width": 32, "depth": None, "head_size": None}),
    ("cnn", "mup", "adamw", {"width": 8, "depth": 1, "head_size": None}),
    ("resnet", "mup", "sgd", {"width": 4, "depth": None, "head_size": None}),
]


def twice(base):
    """Another base shape."""
    return base | {"width": 2 * base["width"]}


@pytest.mark.parametrize(("family", "rule", "optimizer", "base"), CASES)
def test_at_the_base_shape_the_programs_are_those_of_no_rule(family, rule, optimizer, base):
    def programs(moved):
        spec, hyper, inputs = spec_of(family, optimizer, moved)
        first = jax.random.key(0), inputs["inputs"], hyper
        state = jax.eval_shape(spec.init, *first)
        lowered = jax.jit(spec.init).lower(*first), jax.jit(spec.step).lower(state, inputs, hyper)
        return [each.as_text() for each in lowered]

    plain = programs(None)
    assert programs({"rule": rule, **base}) == plain
    other = programs({"rule": rule, **twice(base)})
    assert not any(a == b for a, b in zip(other, plain, strict=True))  # the twin


slow = [pytest.param(*case, marks=pytest.mark.slow) for case in CASES[1:]]


@pytest.mark.parametrize(("family", "rule", "optimizer", "base"), [CASES[0], *slow])
def test_at_the_base_shape_three_steps_have_the_bits_of_no_rule(family, rule, optimizer, base):
    plain = three_steps(family, optimizer, None)
    same = three_steps(family, optimizer, {"rule": rule, **base})
    jax.tree.map(np.testing.assert_array_equal, plain, same)
    other = three_steps(family, optimizer, {"rule": rule, **twice(base)})
    leaves = zip(jax.tree.leaves(plain), jax.tree.leaves(other), strict=True)
    assert not all(np.array_equal(a, b) for a, b in leaves)


# The same function and the same steps as with multipliers in the forward pass.

D0, L0, K0 = 16, 2, 4
M, ML, MH = 2.0, 2.0, 2.0
WIDE = LANGUAGE | {"width": 32, "depth": 4, "heads": 4, "kv_heads": 4, "hidden": 64}
WIDE |= {"positions": "learned", "activation": "relu2", "bias": False}
LR, DECAY, EPS, CLIP, B1, B2 = 0.02, 0.1, 1e-2, 0.3, 0.9, 0.98
_VECTORS = ("attn_norm/scale", "mlp_norm/scale")


def unit(x, scale):
    scale = scale.reshape((1,) * (x.ndim - 1) + scale.shape)
    return scale * x / jnp.sqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-5)


def explicit_loss(w, tokens, targets):
    """A transformer with the multipliers in its forward pass, written down."""
    b, t = tokens.shape
    x = w["embed/embedding"][tokens] + w["position/embedding"][:t][None]
    for layer in range(WIDE["depth"]):
        p = {k.removeprefix("blocks/"): v[layer] for k, v in w.items() if k.startswith("blocks/")}
        h = unit(x, p["attn_norm/scale"])
        q, k, v = (
            (h @ p[f"attn/{name}/kernel"]).reshape(b, t, 4, 8) for name in ("query", "key", "value")
        )
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * math.sqrt(K0) / 8
        scores = jnp.where(np.tril(np.ones((1, 1, t, t), bool)), scores, -jnp.inf)
        y = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v).reshape(b, t, -1)
        x += y @ p["attn/out/kernel"] / ML
        h = unit(x, p["mlp_norm/scale"])
        x += jnp.square(jax.nn.relu(h @ p["mlp/up/kernel"])) @ p["mlp/down/kernel"] / ML
    x = unit(x, w["final_norm/scale"])
    head = w["head/kernel"] if "head/kernel" in w else w["embed/embedding"].T
    logits = x @ head / M
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)
    return -chosen.mean()


def numbers_of(path):
    """(learning rate, decay, epsilon) of a leaf, by the published table."""
    if path.startswith("blocks/") and path.endswith("kernel"):
        return LR / M, DECAY * M, EPS / M / ML
    if path.endswith(_VECTORS):
        return LR, 0.0, EPS / M / ML
    if path == "final_norm/scale":
        return LR, 0.0, EPS
    return LR, DECAY, EPS / M


@jax.jit
def explicit_step(w, first, second, t, tokens, targets):
    """Adam with decoupled decay, after a clip by the global norm, written down; and the norm."""
    g = jax.grad(explicit_loss)(w, tokens, targets)
    norm, out = jnp.sqrt(sum(jnp.square(x).sum() for x in g.values())), {}
    for path, x in g.items():
        lr, decay, eps = numbers_of(path)
        x = x * jnp.minimum(1.0, CLIP / norm)
        first[path] = B1 * first[path] + (1 - B1) * x
        second[path] = B2 * second[path] + (1 - B2) * jnp.square(x)
        root = jnp.sqrt(second[path] / (1 - B2**t))
        update = first[path] / (1 - B1**t) / (root + eps) + decay * w[path]
        out[path] = w[path] - lr * update
    return out, first, second, norm


def explicit_steps(w, inputs, steps):
    """The parameters after each of so many steps, and the norms of their gradients."""
    zeros = jax.tree.map(jnp.zeros_like, w)
    state, after, norms = (w, zeros, zeros), [], []
    for t in range(1, steps + 1):
        *state, norm = explicit_step(*state, float(t), inputs["inputs"], inputs["targets"])
        after.append(state[0])
        norms.append(norm)
    return after, norms


def absorbed(tied, moved=True):
    """The model and its step with the rule; the factors."""
    model = models.build("transformer", **WIDE | {"tie_embeddings": tied})
    tokens = jax.ShapeDtypeStruct((1, 16), np.int32)
    rule, _ = transfer_rule(section("complete_p"), model, tokens, "adamw")
    chosen, numbers = Optimizer.from_config(
        {"name": "adamw", "b1": B1, "b2": B2, "eps": EPS, "weight_decay": DECAY}
    )
    task = task_class("language_modeling")(chunk=0)
    spec = StepSpec(model, task, chosen, Choice("constant"), transfer=rule if moved else None)
    hyper = Hyper(LR, 0.0, 10.0, CLIP, None, None, optimizer=numbers, schedule={})
    return spec, jax.tree.map(jnp.float32, hyper), dict(rule.factors)


@pytest.mark.parametrize("tied", [pytest.param(False, marks=pytest.mark.slow), True])
def test_steps_are_those_of_a_network_that_multiplies_in_its_forward_pass(tied):
    spec, hyper, known = absorbed(tied)
    inputs = batch_of("transformer")
    state = jax.jit(spec.init)(jax.random.key(3), inputs["inputs"], hyper)
    stored = leaves_by_path(state.params)
    w = {path: leaf / known[path].forward for path, leaf in stored.items()}
    # As drawn by the rule, of what the family draws at this shape: constant variance of what reads
    # and writes tokens, and of the branches' last matrices that of the base depth.
    drawn = leaves_by_path(jax.jit(spec.model.init)(jax.random.key(3), inputs["inputs"]))
    for path, leaf in drawn.items():
        outer = path.endswith("embedding") or path == "head/kernel"
        last = path.endswith(("out/kernel", "down/kernel"))
        scale = math.sqrt(M) if outer else math.sqrt(ML) if last else 1.0
        np.testing.assert_allclose(w[path], scale * leaf, rtol=1e-6)
    after, norms = explicit_steps(w, inputs, 3)
    step, measured = jax.jit(spec.step), []
    for _ in range(3):
        state, metrics = step(state, inputs, hyper)
        measured.append(float(metrics["grad_norm"]))
    np.testing.assert_allclose(measured, norms, rtol=1e-5)
    assert norms[0] > CLIP  # so the clip counts
    for path, leaf in leaves_by_path(state.params).items():
        np.testing.assert_allclose(
            leaf, after[-1][path] * known[path].forward, rtol=2e-4, atol=2e-6
        )

    twin, hyper, _ = absorbed(tied, moved=False)  # from the same weights, without the rule
    other = jax.jit(twin.init)(jax.random.key(3), inputs["inputs"], hyper)
    other = other._replace(params=nest(stored))
    other, _ = jax.jit(twin.step)(other, inputs, hyper)
    off = [
        float(jnp.abs(leaf - after[0][path] * known[path].forward).max())
        for path, leaf in leaves_by_path(other.params).items()
    ]
    assert max(off) > 1e-3


def changes_of_logits(width, rule):
    """The RMS by which ten steps change the logits, of a transformer that learns which
    tokens there are; heads of one size."""
    fields = LANGUAGE | {"width": width, "depth": 1, "heads": width // 8, "kv_heads": width // 8}
    model = models.build("transformer", **fields | {"hidden": 2 * width, "bias": False})
    chosen, numbers = Optimizer.from_config({"name": "adam", "b1": 0.9, "b2": 0.95, "eps": 1e-12})
    moved = None
    if rule != "none":
        base = {"rule": rule, "width": 32, "depth": 1, "head_size": 8}
        moved, _ = transfer_rule(base, model, jax.ShapeDtypeStruct((1, 16), np.int32), "adam")
    task = task_class("language_modeling")(chunk=0)
    spec = StepSpec(model, task, chosen, Choice("constant"), transfer=moved)
    hyper = Hyper(0.01, 0.0, 10.0, None, None, None, optimizer=numbers, schedule={})
    hyper = jax.tree.map(jnp.float32, hyper)
    text = np.random.default_rng(0).integers(8, size=(10, 16, 17))
    batches = {"inputs": text[..., :-1].astype(np.int32), "targets": text[..., 1:].astype(np.int32)}

    @jax.jit
    def ten(key):
        def read(params):
            return model.unembed(params, model.apply(params, batches["inputs"][0]))

        state = spec.init(key, batches["inputs"][0], hyper)
        last, _ = jax.lax.scan(lambda s, x: (spec.step(s, x, hyper)[0], None), state, batches)
        return jnp.sqrt(jnp.mean(jnp.square(read(last.params) - read(state.params))))

    return np.mean([ten(jax.random.key(seed)) for seed in range(3)])


@pytest.mark.slow
def test_what_ten_steps_change_is_the_same_at_every_width_by_the_rule_alone():
    slopes = {}
    for rule in ("none", "mup"):
        small, large = (changes_of_logits(width, rule) for width in (32, 128))
        slopes[rule] = math.log(large / small) / math.log(4)
    assert abs(slopes["mup"]) < 0.1
    assert slopes["none"] > 0.25


# In a run.

RULE = {"rule": "complete_p", "width": 8, "depth": 1, "head_size": 4}
MOVED = grid.section("optim.transfer", RULE)


def moved(tiny, changes=None):
    return make_run(tiny({**MOVED, **(changes or {})}))


def one_device(run):
    return Trainer(run, device_mesh.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, run.batch))


@pytest.mark.parametrize("tied", [pytest.param(False, marks=pytest.mark.slow), True])
def test_training_evaluation_and_generation_are_one_function(tiny, tied):
    run = moved(tiny, {"model.tie_embeddings": tied, "optim.lr": 1.0})
    trainer = one_device(run)
    state, metrics = trainer.steps(trainer.init(), trainer.batches(0, 3, 3), 3)
    params, model = state.params, run.model
    batch = {name: rows[0] for name, rows in host_batches(run, 3, 1, 1).items()}
    _, metrics = jax.jit(step_spec(run).step)(state, batch, trainer.hyper)
    terms = run.task.terms(model, params, batch)  # as evaluation sums them
    np.testing.assert_allclose(metrics["train_loss"], terms["loss"].sum() / 256, rtol=1e-5)
    tokens = batch["inputs"][:2]
    at_once = model.unembed(params, model.apply(params, tokens)).reshape(2, 32, -1)
    hidden, cache = model.decode(params, tokens[:, :20], model.init_cache(2, 32), 0)
    for at in range(20, 24):  # as generation reads
        hidden, cache = model.decode(params, tokens[:, at : at + 1], cache, at)
        np.testing.assert_allclose(model.unembed(params, hidden), at_once[:, at], atol=2e-5)
    off = jax.tree.map(jnp.asarray, params)
    off["final_norm"] = {"scale": 2 * params["final_norm"]["scale"]}  # as without the multiplier
    wrong = model.unembed(off, model.apply(off, tokens)).reshape(2, 32, -1)
    assert not np.allclose(wrong, at_once, atol=2e-2)


def test_the_numbers_of_the_config_hold_at_the_base_shape(tiny):
    by_width = {"optim.lr": 0.2, "optim.lr_rule": "inverse_width"}
    run = moved(tiny, by_width)
    assert run.facts["lr"] == 0.2 / 8
    assert "learning rate = 0.2 / base width\nbase width 8: 0.025" in run.facts["rules"]
    assert make_run(tiny(by_width)).facts["lr"] == 0.2 / 16  # the twin: no rule
    words = run.facts["rules"].splitlines()
    assert (
        "transfer complete_p: the numbers of the config hold at width 8, depth 1, head size 4; "
        "width, and depth with residual branches times 1/depth"
    ) in words
    assert any("branch: initial x 0.7071, forward x 0.5, lr x 0.5, decay x 2" in w for w in words)
    again = make_run(run.config)
    assert (again.id, again.transfer, again.facts["lr"]) == (run.id, run.transfer, 0.025)


def test_without_a_rule_a_run_has_the_id_that_it_had_before_there_were_rules(tiny):
    run = make_run(tiny())
    optim = {key: value for key, value in run.config["optim"].items() if key != "transfer"}
    older = run.config | {"optim": optim}
    assert identity(older, run.data.digest, None) == run.id
    assert differences(run.config, older) == []
    left = make_run(tiny({**MOVED, "optim.transfer.rule": "none"}))  # a base shape, but no rule
    assert (left.id, left.transfer) == (run.id, None)
    assert moved(tiny).id != run.id
    assert moved(tiny).id != moved(tiny, {"optim.transfer.width": 4}).id
    assert differences(moved(tiny).config, older)


def test_parts_of_a_batch_add_up_to_the_same_step(tiny):
    def params(parts):
        trainer = one_device(moved(tiny, {"batch.grad_accumulation": parts, "optim.lr": 1.0}))
        return jax.device_get(trainer.steps(trainer.init(), trainer.batches(0, 2, 2), 2)[0].params)

    whole, parts = params(1), params(2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), whole, parts)


def test_new_heads_of_a_classifier_are_outputs(corpus):
    fields = {"width": 32, "hidden": 64, "tie_embeddings": True, "classes": 3, "pad": 0}
    model = models.build("transformer", **LANGUAGE | fields)
    found, _ = factors(model, "mup", "adamw")
    assert found["classifier/kernel"][1:] == (0.5, 1, 1, 0.5)
    assert found["classifier/kernel"].initial == pytest.approx(2**-0.5)
    assert found["backbone/final_norm/scale"].forward == 1  # which the classifier reads


CONFIGS = {
    "adafactor": ({"name": "adafactor"}, "mup", "mup does not say how adafactor follows a model's"),
    "muon": ({"name": "muon"}, "complete_p", "how muon follows .* expected spectral or none"),
    "sgd": ({"name": "sgd"}, "complete_p", "how sgd follows .* expected mup or none"),
    "adamw": ({"name": "adamw"}, "spectral", "how adamw follows .* expected mup or complete_p or"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_what_no_rule_covers_is_refused_by_its_name(tiny, name):
    chosen, rule, says = CONFIGS[name]
    optimizer = grid.section("optim.optimizer", chosen | NUMBERS[name])
    with pytest.raises(BadInput, match=says):
        tiny({**MOVED, "optim.transfer.rule": rule, **optimizer})


@pytest.mark.parametrize(
    ("config", "changes", "says"),
    [
        ("lm_gpt2", {"width": None}, "optim.transfer.width: none; mup needs that at which the num"),
        ("lm_gpt2", {"head_size": None}, "optim.transfer.head_size: none; mup needs that"),
        ("lm_gpt2", {"head_size": 5}, "optim.transfer.head_size: 5 does not divide .*width = 8"),
        (
            "lm_gpt2",
            {"rule": "complete_p", "depth": None},
            "optim.transfer.depth: none; complete_p",
        ),
        ("lm_gpt2", {"rule": "muP"}, "optim.transfer.rule: 'muP' is unknown; expected one of none"),
        ("linear", {}, "optim.transfer.rule: mup, but linear has no TRANSFER; expected none"),
        ("lm_gru", {"tied": True}, "no parameter of a gru with tied embeddings can carry"),
    ],
)
def test_a_rule_lacking_what_it_needs_is_refused_before_jax(config, changes, says):
    config, _ = load_config(f"configs/{config}.py")
    config["optim"]["transfer"] = RULE | {"rule": "mup"} | changes
    if config["optim"]["transfer"].pop("tied", False):
        config["model"]["tie_embeddings"] = True
    (problem,) = problems(config)
    assert re.search(says, problem), problem
    config["optim"]["transfer"]["rule"] = "none"
    assert not problems(config)  # the twin


def test_depth_that_no_branch_carries_and_a_base_that_no_network_has_are_refused(tiny):
    mlp = models.build("mlp", **FAMILIES["mlp"])
    features = jax.ShapeDtypeStruct((1, 6), np.float32)
    with pytest.raises(BadInput, match=r"depth: 1, but model.depth is 2; .* or the rule mup"):
        factors(mlp, "complete_p", "adamw", features, depth=1)
    assert factors(mlp, "mup", "adamw", features, depth=1)
    with pytest.raises(BadInput, match=r"optim.transfer: as a base shape, model.heads: 8 of 1"):
        moved(tiny, {"optim.transfer.head_size": 1})
