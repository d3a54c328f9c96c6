"""Schedules at their ends, optimizers against optax's own, what decays, what Muon takes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import MuonDimensionNumbers

from research import models
from research.config import grid
from research.errors import BadInput
from research.models import accounting, transformer
from research.params import flatten_dict, leaves_by_path
from research.training import adafactor as own_adafactor
from research.training import muon, schedules
from research.training import optimizers as optim
from research.training.make_run import make_run
from tests.models.test_models import SMALL

pytestmark = pytest.mark.usefixtures("barely_optimized")

SCHEDULES = {
    "constant": {},
    "cosine": {"final": 0.1},
    "linear": {"final": 0.1},
    "wsd": {"decay": 0.2, "final": 0.1},
    "inverse_sqrt": {"timescale": 10.0},
}


def curve(name, total=100, warmup=10, lr=2.0, **schedule):
    numbers = lr, warmup, total, schedule
    chosen = schedules.Choice(name)
    return np.array([schedules.learning_rate(chosen, jnp.int32(t), *numbers) for t in range(total)])


@pytest.mark.parametrize("name", list(schedules.SCHEDULES))
def test_every_schedule_warms_up_linearly_to_its_peak(name):
    rates = curve(name, **SCHEDULES[name])
    np.testing.assert_allclose(rates[:10], 2.0 * np.arange(1, 11) / 10, rtol=1e-6)
    assert rates.max() == pytest.approx(2.0)
    assert rates[10] == pytest.approx(2.0)  # the schedule sets in where the warm-up ends


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_cosine_and_linear_end_at_their_final_share_and_are_half_way_in_the_middle(name):
    rates = curve(name, warmup=0, total=101, final=0.1)
    assert rates[0] == pytest.approx(2.0)
    assert rates[-1] == pytest.approx(0.2)
    assert rates[50] == pytest.approx(2.0 * (0.1 + 0.9 / 2))
    assert (np.diff(rates) < 0).all()


def test_linear_is_a_line_and_cosine_is_not():
    np.testing.assert_allclose(np.diff(curve("linear", final=0.1)[10:]), -1.8 / 89, rtol=1e-4)
    assert np.ptp(np.diff(curve("cosine", final=0.1)[10:])) > 1e-2


def test_wsd_is_flat_and_then_falls_in_a_line():
    rates = curve("wsd", decay=0.2, final=0.1)
    np.testing.assert_allclose(rates[10:79], 2.0, rtol=1e-6)
    assert rates[-1] == pytest.approx(0.2)
    np.testing.assert_allclose(np.diff(rates[80:]), (0.2 - 2.0) / 20, rtol=1e-4)


def test_inverse_sqrt_is_that_of_vaswani_and_does_not_know_the_length():
    rates = curve("inverse_sqrt", timescale=10.0)
    np.testing.assert_allclose(rates[10:], 2.0 * np.sqrt(10 / np.arange(10, 100)), rtol=1e-6)
    np.testing.assert_array_equal(rates, curve("inverse_sqrt", total=200, timescale=10.0)[:100])
    later = curve("inverse_sqrt", warmup=0, timescale=33.0)
    assert later[99] == pytest.approx(2.0 / 2)  # 99 steps are three timescales
    assert not np.allclose(later[1:], curve("inverse_sqrt", warmup=0, timescale=30.0)[1:])


def test_constant_stays():
    np.testing.assert_allclose(curve("constant")[10:], 2.0)


# Leaves of every kind; `up` is scanned over two layers and large enough for Adafactor to factor.
SHAPES = {
    "embed": {"embedding": (11, 8)},
    "blocks": {
        "mlp": {"up": {"kernel": (2, 128, 144), "bias": (2, 144)}},
        "norm": {"scale": (2, 8)},
    },
    "conv0": {"kernel": (3, 3, 2, 5)},
    "head": {"kernel": (8, 11)},
}
NUMBERS = {
    "sgd": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    "adam": {"b1": 0.9, "b2": 0.98, "eps": 1e-3},
    "adamw": {"b1": 0.9, "b2": 0.98, "eps": 1e-3, "weight_decay": 0.1},
    "lion": {"b1": 0.9, "b2": 0.98, "weight_decay": 0.1},
    "adafactor": {
        "decay_rate": 0.8,
        "clip_threshold": 0.7,
        "scale_by_params": True,
        "momentum": 0.9,
        "weight_decay": 0.1,
    },
    "muon": {
        "momentum": 0.95,
        "weight_decay": 0.1,
        "adam_scale": 0.3,
        "b1": 0.9,
        "b2": 0.98,
        "eps": 1e-3,
    },
}
LR = 0.01


def drawn(seed, *lead):
    rng = np.random.default_rng(seed)
    shape = lambda x: isinstance(x, tuple)  # noqa: E731
    return jax.tree.map(lambda s: rng.normal(size=(*lead, *s)).astype("f"), SHAPES, is_leaf=shape)


PARAMS, GRADS = drawn(0), drawn(1, 4)  # of four steps


def trained(made, params, grads, rate):
    """The parameters after steps on gradients that do not depend on them."""

    def step(carry, grads):
        params, state = carry
        updates, state = made.update(grads, state, params)
        return (jax.tree.map(lambda p, u: p + rate * u, params, updates), state), None

    return jax.lax.scan(step, (params, made.init(params)), grads)[0][0]


def ours(name):
    """A function: keywords → {path: parameter}, the numbers traced as in the step; and what it
    traced."""
    traced = []

    @functools.partial(jax.jit, static_argnums=0)
    def run(optimizer, numbers, *args):
        traced.append(optimizer)
        return trained(optimizer.transform(numbers), *args, -LR)

    def parameters(keywords):
        optimizer, numbers = optim.Optimizer.from_config({"name": name, **keywords})
        return leaves_by_path(run(optimizer, jax.tree.map(np.float32, numbers), PARAMS, GRADS))

    return parameters, traced


def theirs(name, numbers):
    made = REFERENCES[name](**numbers)
    with jax.numpy_dtype_promotion("standard"):  # which optax relies on
        return leaves_by_path(jax.jit(lambda *args: trained(made, *args, 1.0))(PARAMS, GRADS))


def sgd(weight_decay, **numbers):
    decay = optax.add_decayed_weights(-LR * weight_decay, optim.decay_mask)
    return optax.chain(optax.sgd(LR, **numbers), decay)


def adafactor(decay_rate, clip_threshold, scale_by_params, momentum, weight_decay):
    return optax.adafactor(
        LR,
        decay_rate=decay_rate,
        clipping_threshold=clip_threshold,
        multiply_by_parameter_scale=scale_by_params,
        momentum=momentum,
        weight_decay_rate=LR * weight_decay,  # which optax does not do
        weight_decay_mask=optim.decay_mask,
    )


def optax_muon(momentum, weight_decay, adam_scale, **numbers):
    """Optax's for the kernels below; its Adam leaves would be Nesterov's, and all would decay."""

    def of(*axes):
        def dims(params):
            return jax.tree.map(lambda _: MuonDimensionNumbers(*axes), params)

        return optax.contrib.muon(
            LR, beta=momentum, weight_decay=weight_decay, muon_weight_dimension_numbers=dims
        )

    rest = optax.adamw(LR * adam_scale, weight_decay=weight_decay, mask=optim.decay_mask, **numbers)
    labels = {
        "embed": "adam",
        "blocks": {"mlp": {"up": {"kernel": "dense", "bias": "adam"}}, "norm": "adam"},
        "conv0": "conv",
        "head": "adam",
    }
    return optax.partition({"dense": of(1, 2), "conv": of((0, 1, 2), 3), "adam": rest}, labels)


REFERENCES = {
    "sgd": sgd,
    "adam": lambda **numbers: optax.adam(LR, **numbers),
    "adamw": lambda **numbers: optax.adamw(LR, mask=optim.decay_mask, **numbers),
    "lion": lambda **numbers: optax.lion(LR, mask=optim.decay_mask, **numbers),
    "adafactor": adafactor,
    "muon": optax_muon,
}


def other(value):
    return not value if isinstance(value, bool) else value / 2


def assert_equal(found, expected):
    for path, leaf in expected.items():
        np.testing.assert_allclose(found[path], leaf, rtol=1e-6, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("name", list(optim.OPTIMIZERS))
def test_every_optimizer_is_that_of_optax_and_every_number_counts(name):
    run, traced = ours(name)
    numbers = NUMBERS[name]
    changed = {key: other(value) for key, value in numbers.items()}
    found = run(numbers)
    assert_equal(found, theirs(name, numbers))
    assert_equal(run(changed), theirs(name, changed))
    for key in numbers:  # the twin: one wrong number would be seen
        wrong = run(numbers | {key: changed[key]})
        assert max(np.abs(wrong[path] - x).max() for path, x in found.items()) > 1e-4, key
    static = any(isinstance(value, bool) for value in numbers.values())
    assert len(traced) == 1 + static  # other numbers recompile nothing, another choice does


def test_booleans_are_part_of_the_key_of_a_step_and_numbers_are_not():
    keywords = {"name": "sgd", **NUMBERS["sgd"]}
    optimizer, numbers = optim.Optimizer.from_config(keywords)
    assert optimizer == ("sgd", (("nesterov", True),))
    assert numbers == {"momentum": 0.9, "weight_decay": 0.1}
    same = optim.Optimizer.from_config(keywords | {"momentum": 0.5})[0]
    assert hash(optimizer) == hash(same)
    assert optimizer == same != optim.Optimizer.from_config(keywords | {"nesterov": False})[0]
    adafactor = {"name": "adafactor", **NUMBERS["adafactor"], "momentum": None}
    assert optim.Optimizer.from_config(adafactor)[1]["momentum"] is None


def test_a_boolean_of_a_schedule_is_a_python_constant_in_the_step(tiny, monkeypatch):
    seen = []

    def stepped(step, warmup, total, *, final, flip):
        seen.append(flip)
        return jnp.where(step % 2 == 0, 1.0, final) if flip else jnp.ones_like(step)

    monkeypatch.setitem(schedules.SCHEDULES, "stepped", stepped)
    section = {"name": "stepped", "final": 0.5, "flip": True}
    schedule, numbers = schedules.Choice.from_config(section)
    assert (schedule, numbers) == (("stepped", (("flip", True),)), {"final": 0.5})
    assert schedule != schedules.Choice.from_config(section | {"flip": False})[0]
    assert schedule == schedules.Choice.from_config(section | {"final": 0.1})[0]
    config = tiny()
    config["optim"] = config["optim"] | {"schedule": section}
    run = make_run(config)
    assert run.schedule == schedule
    assert run.hyper.schedule == {"final": np.float32(0.5)}
    hyper = run.hyper.lr, run.hyper.warmup, run.hyper.total, run.hyper.schedule
    rate = jax.jit(lambda t: schedules.learning_rate(run.schedule, t, *hyper))
    assert rate(jnp.int32(50)) == 2 * rate(jnp.int32(51))
    assert seen == [True]
    assert all(value is True for value in seen)


def test_adafactor_without_momentum_keeps_none_and_factors_the_rest():
    numbers = NUMBERS["adafactor"] | {"momentum": None}
    found = ours("adafactor")[0](numbers)
    assert_equal(found, theirs("adafactor", numbers))
    assert_equal(found, ours("adafactor")[0](numbers | {"momentum": 0.0}))

    def size(momentum):
        made = own_adafactor.adafactor(**numbers | {"momentum": momentum})
        return sum(x.size for x in jax.tree.leaves(jax.eval_shape(made.init, PARAMS)))

    own_size = sum(x.size for x in jax.tree.leaves(PARAMS))
    assert size(0.0) == size(None) + own_size + 1  # and a counter
    assert size(None) < own_size / 10


def test_matrices_decay_and_scales_do_not():
    mask = optim.decay_mask(
        {"embed": {"embedding": 0}, "norm": {"scale": 0}, "mlp": {"kernel": 0, "bias": 0}}
    )
    assert dict(flatten_dict(mask)) == {
        "embed/embedding": True,
        "norm/scale": False,
        "mlp/kernel": True,
        "mlp/bias": False,
    }
    with pytest.raises(BadInput, match="exactly one row of DECAY") as wrong:
        optim.decay_mask({"gate": {"theta": 0}, "mlp": {"kernel": 0}, "norm": {"shift": 0}})
    assert [line.split("'")[1] for line in wrong.value.problems] == ["gate/theta", "norm/shift"]


@pytest.mark.parametrize(
    ("place", "table", "says"),
    [
        (muon, "MATRICES", "optim.optimizer.name: muon: parameter 'blocks/attn/key/kernel' must"),
        (optim, "DECAY", "optim.optimizer.name: muon: parameter 'blocks/attn/key/kernel' must"),
        (transformer, "GROUPS", "model.name: transformer: parameter 'blocks/attn/key/kernel' must"),
        (transformer, "SHARDING", "model.name: transformer: parameter 'params/blocks/attn/key"),
    ],
)
def test_a_parameter_in_no_table_is_rejected_when_the_run_is_made(
    tiny, monkeypatch, place, table, says
):
    chosen = grid.section("optim.optimizer", {"name": "muon", **NUMBERS["muon"]})
    config = tiny({"model.hidden": 52, **chosen})
    renamed = "kernel" if table == "DECAY" else "key"
    rows = tuple((p.replace(renamed, "other"), value) for p, value in getattr(place, table))
    monkeypatch.setattr(place, table, rows)
    accounting._params.cache_clear()
    says_what_to_do = f"exactly one row of .*{table}.*it matches none; add a row"
    with pytest.raises(BadInput, match=says_what_to_do) as wrong:
        make_run(config)
    assert wrong.value.problems[0].startswith(says)
    monkeypatch.undo()
    assert make_run(config)  # the twin


# family -> its fields, its inputs, and the leaves that Muon takes
FAMILIES = {
    "linear": ({"features": 7, "outputs": 2}, (1, 7), set()),
    "mlp": (
        {"features": 7, "outputs": 2, "width": 8, "depth": 2, "activation": "relu"},
        (1, 7),
        {"hidden0/kernel", "hidden1/kernel"},
    ),
    "cnn": (
        {"image_shape": (32, 32, 3), "classes": 10, "width": 8, "depth": 2, "hidden": 16},
        (1, 32, 32, 3),
        {"conv0/kernel", "conv1/kernel", "dense0/kernel"},
    ),
    "gru": (
        {"vocab": 61, "context": 16, "width": 8, "depth": 1, "dtype": "float32", "unroll": 1}
        | {"tie_embeddings": False},
        None,
        {"layer0/input/kernel", "layer0/recurrent/kernel"},
    ),
    "transformer": (
        SMALL | {"norm": "layer", "positions": "learned", "bias": True, "qk_norm": True},
        None,
        {f"blocks/attn/{name}/kernel" for name in ("query", "key", "value", "out")}
        | {f"blocks/mlp/{name}/kernel" for name in ("up", "gate", "down")},
    ),
}


def taken(params):
    """The paths whose state Muon holds, in the state of the optimizer itself."""
    state = jax.eval_shape(muon.muon(**NUMBERS["muon"]).init, params)
    found = leaves_by_path(state.inner_states["muon"])
    return {path.partition("/mu/")[2] for path in found if "/mu/" in path}


def shapes(name):
    fields, shape, _ = FAMILIES[name]
    inputs = jax.ShapeDtypeStruct((1, 16), jnp.int32)
    if shape:
        inputs = jax.ShapeDtypeStruct(shape, jnp.float32)
    return models.build(name, **fields).shapes(inputs)


@pytest.mark.parametrize("name", list(FAMILIES))
def test_muon_takes_the_hidden_matrices_of_every_family(name):
    params = shapes(name)
    assert taken(params) == FAMILIES[name][2]
    decayed = {path for path, yes in leaves_by_path(optim.decay_mask(params)).items() if yes}
    assert decayed == {p for p in leaves_by_path(params) if p.endswith(("kernel", "embedding"))}


def test_muon_takes_the_convolutions_of_a_resnet_and_no_head():
    fields = {"image_shape": (8, 8, 3), "classes": 5, "width": 8, "depth": 1}
    inputs = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    params = models.build("resnet", **fields).shapes(inputs)
    convolutions = {path for path, x in leaves_by_path(params).items() if x.ndim == 4}
    assert taken(params) == convolutions
    assert len(convolutions) >= 7
    with pytest.raises(BadInput, match="exactly one row of MATRICES"):
        taken({"mixer": {"kernel": params["head"]["kernel"]}})


def test_optax_alone_would_take_other_leaves():
    """Why there is a table: scanned kernels have three dimensions, and scanned biases two."""
    state = jax.eval_shape(optax.contrib.muon(LR).init, shapes("transformer"))
    found = leaves_by_path(state.inner_states["muon"])
    assert any(path.endswith("mlp/up/bias") for path in found)
    assert not any(path.endswith("mlp/up/kernel") for path in found)


def directions(kernel, path="blocks/mlp/up/kernel"):
    """Muon's first update of a kernel, without decay, from its gradient."""
    tree = kernel
    for key in reversed(path.split("/")):
        tree = {key: tree}
    made = muon.muon(**NUMBERS["muon"] | {"weight_decay": 0.0})
    updates = jax.jit(lambda t: made.update(t, made.init(t), t)[0])(tree)
    return np.asarray(leaves_by_path(updates)[path])


@pytest.mark.parametrize("shape", [(3, 16, 24), (3, 24, 16)])
def test_each_layer_of_a_scanned_kernel_is_orthogonalized_by_itself(shape):
    """Singular values near 1, times the root of out/in, of each layer and of no other matrix."""
    # Layers of very different size: together they would not come out alike.
    grads = jax.random.normal(jax.random.key(0), shape) * jnp.array([1e-3, 1, 1e3])[:, None, None]
    scanned = directions(grads)
    alone = np.stack([directions(g, "dense0/kernel") for g in grads])
    np.testing.assert_allclose(scanned, alone, atol=2e-5)
    values = np.linalg.svd(scanned, compute_uv=False) / np.sqrt(max(1, shape[2] / shape[1]))
    assert 0.3 < values.min() < values.max() < 1.3
    whole = directions(grads.reshape(-1, shape[2]), "dense0/kernel").reshape(shape)
    assert np.abs(whole - scanned).max() > 0.1  # the twin
    before = np.linalg.svd(np.asarray(grads[1]), compute_uv=False)
    assert before.max() / before.min() > 4 > values.max() / values.min()


def test_a_convolution_is_a_matrix_from_patches_to_channels():
    grads = jax.random.normal(jax.random.key(0), (3, 3, 2, 5))
    patches = directions(grads.reshape(18, 5), "dense0/kernel")
    convolved = directions(grads, "stage0/block1/conv1/kernel").reshape(18, 5)
    # Newton-Schulz makes more of the rounding of products in another order.
    np.testing.assert_allclose(convolved, patches, atol=2e-5)
    taps = np.stack([directions(g, "dense0/kernel") for g in grads.reshape(9, 2, 5)])
    assert np.abs(taps.reshape(18, 5) - convolved).max() > 0.1
