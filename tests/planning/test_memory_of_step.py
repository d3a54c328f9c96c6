"""How a step is computed changes its memory, not its meaning: batches in parts, logits in chunks,
blocks worked out again, layers in a scan, donated states."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice

from research import models
from research.config import validation
from research.errors import BadInput, Preempted
from research.models import attention, attention_kernels, custom_vjp
from research.parallel import device_memory, device_mesh
from research.planning import jaxpr_sharding
from research.runs.directory import RunDirectory, read_launch
from research.training import step
from research.training.language_modeling import FEW, LOGITS, LanguageModeling
from research.training.loop import preflight, train_run
from research.training.make_run import make_run
from research.training.optimizers import Optimizer
from research.training.other_execution import with_execution
from research.training.schedules import Choice
from research.training.trainer import Trainer
from tests.models.test_models import SMALL
from tests.training.test_optimizers import NUMBERS

pytestmark = pytest.mark.usefixtures("barely_optimized")

ONE = {"data": 1, "fsdp": 1, "tensor": 1}
ALL = {"data": 2, "fsdp": 2, "tensor": 2}


def trainer(config, sizes=ONE):
    run = make_run(config)
    return Trainer(
        run, device_mesh.make_mesh(sizes, run.batch, parts=run.execution.grad_accumulation)
    )


def lowered(config, sizes=ONE):
    made = trainer(config, sizes)
    return made, made.lower(4)  # as in `losses`: one compile


def compiled(config, sizes=ONE):
    made, program = lowered(config, sizes)
    return made, program.compile()


def temporaries(config, sizes=ONE):
    return compiled(config, sizes)[1].memory_analysis().temp_size_in_bytes


def losses(made, steps=4):
    state, metrics = made.steps(made.init(), made.batches(0, steps, steps), steps)
    return jax.device_get(state.params), np.asarray(metrics["train_loss"])


def close(some, others, rtol=2e-5, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), some, others)


# A batch in parts.


# Adam divides by what is nearly 0 in its first steps: rounding would decide the step.
SMOOTH = {f"optim.optimizer.{key}": value for key, value in NUMBERS["adamw"].items()}


@pytest.fixture(scope="module")
def whole(tiny):
    return losses(trainer(tiny({"batch.size": 16} | SMOOTH)))


@pytest.mark.parametrize(
    ("parts", "sizes"), [(4, ONE), pytest.param(4, ALL, marks=pytest.mark.slow), (16, ONE)]
)
def test_a_batch_in_parts_is_the_whole_batch(parts, sizes, tiny, whole):
    made = trainer(tiny({"batch.size": 16, "batch.grad_accumulation": parts} | SMOOTH), sizes)
    params, found = losses(made)
    np.testing.assert_allclose(found, whole[1], rtol=1e-6)
    close(params, whole[0], atol=2e-5)


def test_another_batch_is_not(tiny, whole):
    changes = {"batch.size": 16, "batch.grad_accumulation": 4, "data.seed": 1}
    other = losses(trainer(tiny(changes | SMOOTH)))
    assert not np.allclose(other[1], whole[1], rtol=1e-4)


@pytest.mark.slow
def test_parts_weigh_by_their_tokens_and_not_equally():
    """A mean of means would be another number where parts count differently."""

    class Weighted(LanguageModeling):
        def terms(self, model, params, batch):
            terms = super().terms(model, params, batch)
            return {name: x * batch["weight"] for name, x in terms.items()}

        def loss(self, model, params, batch):
            terms = self.terms(model, params, batch)
            return terms["loss"].sum(), terms["count"].sum()

    model, batch = models.build("transformer", **SMALL), tokens(8)
    batch["weight"] = jnp.arange(1.0, 9.0)
    params = model.init(jax.random.key(0), batch["inputs"])
    recipe = step.StepSpec(model, Weighted(chunk=0), Optimizer("adamw"), Choice("constant"))
    loss, grads = jax.jit(recipe.gradient)(params, batch)
    found, others = jax.jit(recipe._replace(grad_accumulation=4).gradient)(params, batch)
    assert float(found) == pytest.approx(float(loss), rel=1e-6)
    close(grads, others)
    equal = recipe.gradient(params, batch | {"weight": jnp.ones(8)})[0]
    assert float(equal) != pytest.approx(float(loss), rel=1e-4)


def test_every_device_has_its_share_of_each_part_already(tiny):
    config = tiny({"batch.size": 32, "batch.grad_accumulation": 4})
    text = compiled(config, ONE | {"data": 8})[1].as_text()
    assert "all-reduce" in text
    assert not any(op in text for op in ("all-to-all", "collective-permute", "all-gather"))


@pytest.mark.slow
def test_parts_need_the_memory_of_one(tiny):
    config = {"batch.size": 64, "model.depth": 4}
    assert temporaries(tiny(config | {"batch.grad_accumulation": 8})) < 0.25 * temporaries(
        tiny(config)
    )


def test_parts_that_do_not_divide_are_rejected_before_a_compile(tiny):
    config, problems = validation.override(tiny(), {"batch.grad_accumulation": 3})
    assert not problems
    assert validation.problems(config) == [
        "batch.grad_accumulation: 3 does not divide batch.size = 8"
    ]
    with pytest.raises(
        BadInput, match=r"grad_accumulation: 3 does not divide a batch of 8 examples"
    ):
        make_run(config)
    with pytest.raises(BadInput, match=r"batch.size / batch.grad_accumulation: 2 is not divisible"):
        trainer(tiny({"batch.grad_accumulation": 4}), ONE | {"data": 4})
    assert trainer(tiny({"batch.grad_accumulation": 4}), ONE | {"data": -1}).mesh.size == 2


# The execution of a run is no part of what it is; a run resumes with that of its first launch.

OTHERWISE = {
    "batch.grad_accumulation": 2,
    "task.chunk": 64,
    "model.attention": "xla",
    "model.remat": "full",
    "model.unroll": 2,
}

EXECUTION = {key.rpartition(".")[2]: value for key, value in OTHERWISE.items()}


@pytest.mark.slow
def test_a_run_continues_as_it_was_first_launched(tiny, tmp_path):
    config = {"horizon.amount": 30.0, "loop.steps_per_dispatch": 5, "eval.examples": 8}
    one, other = make_run(tiny(config)), make_run(tiny(config | OTHERWISE))
    assert one.id == other.id
    assert vars(other.execution) == EXECUTION
    assert vars(one.execution) != EXECUTION
    same = with_execution(one, other.execution)
    assert (same.execution, same.model, same.task) == (other.execution, other.model, other.task)

    def launched(name, run, stop=None):
        calls = iter(range(100))
        with RunDirectory(tmp_path / name, run.id) as directory:
            return train_run(run, directory, stop=lambda: stop is not None and next(calls) >= stop)

    alone = launched("alone", one)
    with pytest.raises(Preempted):
        launched("stopped", one, stop=1)
    assert launched("stopped", other)["loss"] == alone["loss"]
    assert launched("other", other)["loss"] == pytest.approx(alone["loss"], rel=1e-4)


def test_what_the_first_launch_decided_is_told_once(tiny, tmp_path, caplog):
    config = {"horizon.amount": 30.0, "loop.steps_per_dispatch": 5, "eval.examples": 8}
    one, other = make_run(tiny(config)), make_run(tiny(config | OTHERWISE))
    calls = iter(range(100))
    with RunDirectory(tmp_path, one.id) as directory, pytest.raises(Preempted):
        train_run(one, directory, stop=lambda: next(calls) >= 1)
    directory = RunDirectory(tmp_path, other.id)
    large = preflight(other, directory)
    assert large is None or large[0].execution == one.execution
    with directory:
        train_run(other, directory)
    told = [r for r in caplog.records if "options of its first launch" in r.getMessage()]
    assert len(told) == 1


@pytest.mark.slow
def test_a_launch_that_left_nothing_binds_nobody(tiny, tmp_path, monkeypatch):
    one, other = make_run(tiny()), make_run(tiny(OTHERWISE))

    def short(*_):
        raise MemoryError

    with RunDirectory(tmp_path, one.id) as directory:
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "steps", short)
            with pytest.raises(MemoryError):
                train_run(one, directory)
        assert read_launch(directory.path)["execution"] == vars(one.execution)
        train_run(other, directory)
        assert read_launch(directory.path)["execution"] == EXECUTION


# Logits in chunks.


def tokens(batch=2, length=16, vocab=61):
    rows = np.random.default_rng(0).integers(0, vocab, (batch, length + 1), np.int32)
    return {"inputs": jnp.asarray(rows[:, :-1]), "targets": jnp.asarray(rows[:, 1:])}


GRU = {"vocab": 61, "context": 16, "width": 32, "depth": 1, "dtype": "float32", "unroll": 1}
HEADS = {
    "untied": models.build("transformer", **SMALL),
    "tied": models.build("transformer", **SMALL | {"tie_embeddings": True}),
    "bfloat16": models.build("transformer", **SMALL | {"dtype": "bfloat16"}),
    "gru": models.build("gru", **GRU, tie_embeddings=False),
    "gru, tied": models.build("gru", **GRU, tie_embeddings=True),
}


def loss_and_gradient(model, chunk, batch):
    params = model.init(jax.random.key(0), batch["inputs"])
    recipe = step.StepSpec(
        model, LanguageModeling(chunk=chunk), Optimizer("adamw"), Choice("constant")
    )
    return jax.jit(recipe.gradient)(params, batch)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "tied" else pytest.mark.slow) for n in HEADS]
)
@pytest.mark.parametrize("chunk", [8, 10])  # 2 x 16 tokens in 4 chunks; in 4, the last filled up
def test_a_loss_in_chunks_is_the_same_loss(name, chunk):
    model, batch = HEADS[name], tokens()
    loss, grads = loss_and_gradient(model, 0, batch)
    found, others = loss_and_gradient(model, chunk, batch)
    assert float(found) == pytest.approx(float(loss), rel=1e-6)
    if model.spec.dtype == "float32":
        close(grads, others, atol=1e-7)
    for one, other in zip(*map(jax.tree.leaves, (grads, others)), strict=True):
        assert np.abs(one - other).max() < 0.03 * np.abs(one).max()
    assert any(np.abs(g).max() > 1e-3 for g in jax.tree.leaves(grads))
    shifted = batch | {"targets": jnp.roll(batch["targets"], 1, axis=1)}
    other = loss_and_gradient(model, chunk, shifted)[0]
    assert float(other) != pytest.approx(float(loss), rel=1e-4)


@pytest.mark.parametrize(("length", "chunk"), [(16, 8), (13, 6), (13, 2), (16, 1)])
def test_terms_of_each_example_are_the_same_in_chunks(length, chunk):
    model, batch = HEADS["untied"], tokens(3, length)
    params = model.init(jax.random.key(0), batch["inputs"])
    whole, parts = (
        LanguageModeling(chunk=n).terms(model, params, batch)["loss"] for n in (0, chunk)
    )
    np.testing.assert_allclose(parts, whole, rtol=1e-5)
    assert np.ptp(np.asarray(whole)) > 1e-2  # so that examples are not to be confused


@pytest.mark.slow
def test_chunks_are_the_same_on_a_mesh_whose_tensor_axis_splits_the_vocabulary(tiny):
    config = {"model.width": 32, "batch.size": 16}
    params, found = losses(trainer(tiny(config | {"task.chunk": 32}), ALL))
    expected = losses(trainer(tiny(config | {"task.chunk": 0})))
    np.testing.assert_allclose(found, expected[1], rtol=1e-6)
    close(params, expected[0], atol=2e-5)


@pytest.mark.slow
def test_chunks_are_the_same_for_runs_side_by_side(tiny):
    """vmapped, as in a group: parts and chunks at once."""
    recipes = [
        trainer(tiny(changes)).spec
        for changes in ({}, {"batch.grad_accumulation": 2, "task.chunk": 32})
    ]
    batch = tokens(8, 32, 256)
    stack = [recipes[0].model.init(jax.random.key(k), batch["inputs"]) for k in range(2)]
    stack = jax.tree.map(lambda *x: jnp.stack(x), *stack)
    (loss, grads), (found, others) = (
        jax.jit(jax.vmap(r.gradient, in_axes=(0, None)))(stack, batch) for r in recipes
    )
    np.testing.assert_allclose(found, loss, rtol=1e-6)
    close(grads, others)
    assert loss[0] != loss[1]


def test_a_large_vocabulary_takes_a_fraction_of_the_memory():
    """Compiled and not run: 131,072 words, 8 x 1,024 tokens, chunks by the rule."""
    fields = SMALL | {"vocab": 2**17, "context": 1024, "depth": 1, "remat": "full"}
    model = models.build("transformer", **fields)
    batch = {k: jax.ShapeDtypeStruct((8, 1024), jnp.int32) for k in ("inputs", "targets")}
    params = model.shapes(batch["inputs"])

    def reserved(chunk):
        recipe = step.StepSpec(
            model, LanguageModeling(chunk=chunk), Optimizer("adamw"), Choice("constant")
        )
        program = jax.jit(recipe.gradient).lower(params, batch).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert 4 * reserved(None) < reserved(0)


def test_the_rule_leaves_small_vocabularies_whole(tiny):
    chosen = LanguageModeling.chunk_by_rule
    assert chosen(256) * 256 == LOGITS
    assert chosen(50257) == chosen(131072) == FEW
    made = trainer(tiny(), ONE | {"data": 4})
    assert made.spec.task.chunk == 4 * chosen(256)  # of all devices
    large = LanguageModeling(chunk=None).for_devices(HEADS["untied"], 2)
    assert large.chunk == 2 * chosen(61)
    assert LanguageModeling(chunk=0).for_devices(HEADS["untied"], 2).chunk == 0


# Blocks that are worked out again.

REMAT = ("none", "dots", "projections", "offload", "full")


@pytest.mark.slow
def test_remat_by_name_takes_less_memory_and_gives_the_same_losses(tiny):
    deep = {"model.depth": 6, "batch.size": 32}
    configs = [tiny(deep | {"model.remat": name}) for name in REMAT]
    none, dots, projections, offload, full = map(temporaries, configs)
    assert full < 0.85 * projections
    assert projections < 0.85 * dots
    assert offload == pytest.approx(projections, rel=0.1)  # on CPU
    assert full < 0.7 * dots
    assert dots < 0.7 * none
    every = [losses(trainer(config))[1] for config in configs]
    for found in every[1:]:
        np.testing.assert_allclose(found, every[0], rtol=1e-6)


@pytest.mark.parametrize("old", [True, False])
def test_booleans_of_earlier_configs_are_reported_with_their_new_values(old, tiny):
    config = tiny()
    config["model"]["remat"] = old
    problems = validation.problems(config)
    assert problems == [f"model.remat: {old} is of type bool; expected one of {', '.join(REMAT)}"]


# Attention by one implementation or another.


@pytest.mark.parametrize("kv_heads", [pytest.param(1, marks=pytest.mark.slow), 2, 4])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attention_is_the_same_by_any_implementation(kv_heads, dtype):
    keys = jax.random.split(jax.random.key(1), 4)
    q, g = (jax.random.normal(key, (2, 8, 4, 16), dtype) for key in keys[:2])
    k, v = (jax.random.normal(key, (2, 8, kv_heads, 16), dtype) for key in keys[2:])

    def found(function):
        def both(q, k, v):
            out, back = jax.vjp(function, q, k, v)
            return out, back(g)

        return jax.tree.map(lambda x: np.asarray(x, np.float32), jax.jit(both)(q, k, v))

    own = found(functools.partial(attention.causal_attention, "own"))
    with jax.numpy_dtype_promotion("standard"):  # which jax's own softmax relies on in bfloat16
        theirs = found(functools.partial(attention.causal_attention, "xla"))
        seeing_all, _ = found(lambda q, k, v: jax.nn.dot_product_attention(q, k, v))
    error = 5e-2 if dtype == "bfloat16" else 2e-5
    close(own, theirs, rtol=error, atol=error)
    assert np.abs(own[0] - seeing_all).max() > 0.1


@pytest.mark.parametrize(("kv_heads", "head_size"), [(2, 64), (1, 40)])
def test_splash_attention_is_the_same(kv_heads, head_size):
    """By XLA in place of a TPU; of heads that are filled up too, and of shared ones."""
    keys = jax.random.split(jax.random.key(1), 4)
    q, g = (jax.random.normal(key, (2, 256, 2, head_size)) for key in keys[:2])
    k, v = (jax.random.normal(key, (2, 256, kv_heads, head_size)) for key in keys[2:])
    kernel = attention_kernels.splash

    def found(function):
        out, back = jax.vjp(function, q, k, v)
        return out, back(g)

    def by_kernel(q, k, v):
        with mock.patch.object(
            attention_kernels, "splash", functools.partial(kernel, interpret=True)
        ):
            return attention_kernels.causal_attention("splash", q, k, v)

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        close(
            jax.jit(lambda: found(by_kernel))(),
            found(custom_vjp.causal_attention_vjp),
            rtol=2e-5,
            atol=2e-5,
        )
        wrong = functools.partial(kernel, scale=1.0, interpret=True)
        first = custom_vjp.causal_attention_vjp(q, k, v)
        assert np.abs(jax.jit(wrong)(q, k, v) - first).max() > 0.1


def test_splash_attention_is_split_over_a_mesh():
    """Over rows and heads, as an abstract mesh of TPUs is traced; XLA cannot split a kernel."""
    mesh = device_mesh.abstract_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    tpu = AbstractDevice(device_kind="TPU v5", num_cores=1, platform="tpu")
    mesh = mesh.update(abstract_device=tpu)
    x = jax.ShapeDtypeStruct((8, 1024, 4, 64), jnp.bfloat16)
    function = functools.partial(attention.causal_attention, "auto")
    text = str(jax.make_jaxpr(device_mesh.with_mesh_names(mesh, function))(x, x, x))
    assert "shard_map" in text
    assert "bf16[2,2,1024,64]" in text  # rows and heads of one device
    assert "1024,1024]" not in text.replace(" ", "")
    own = functools.partial(attention.causal_attention, "own")
    whole = str(jax.make_jaxpr(device_mesh.with_mesh_names(mesh, own))(x, x, x))
    assert "1024,1024]" in whole.replace(" ", "")


def test_a_kernel_tells_the_estimate_nothing():
    """It is passed over and does not end a plan; what surrounds it is counted."""
    x = jax.ShapeDtypeStruct((2, 256, 2, 64), jnp.float32)
    kernel = functools.partial(attention_kernels.splash, scale=1.0)
    jaxpr = jax.make_jaxpr(lambda q, k, v: kernel(q, k, v) + q)(x, x, x)
    assert "pallas_call" in str(jaxpr)
    program = jaxpr_sharding.Program(jaxpr, [], 1)
    names = [op.name for op in program.level.ops]
    assert "pallas_call" in names
    assert names[-1] == "add"


@pytest.mark.slow
def test_a_model_is_the_same_by_any_implementation(tiny):
    (one, found), (other, others) = (
        losses(trainer(tiny({"model.attention": by, "model.kv_heads": 1}))) for by in ("own", "xla")
    )
    np.testing.assert_allclose(found, others, rtol=1e-6)
    close(one, other, atol=2e-5)


@pytest.mark.parametrize(
    ("dtype", "head_size", "length", "platform", "by"),
    [
        ("bfloat16", 64, 1024, "gpu", "cudnn"),
        ("bfloat16", 64, 1024, "cpu", "own"),
        ("bfloat16", 64, 1024, "tpu", "splash"),
        ("float32", 64, 1024, "tpu", "splash"),
        ("bfloat16", 64, 100, "tpu", "own"),
        ("float32", 64, 1024, "gpu", "own"),
        ("bfloat16", 60, 1024, "gpu", "cudnn"),  # filled up to 64
        ("bfloat16", 256, 1024, "gpu", "own"),
        ("bfloat16", 256, 1024, "tpu", "splash"),
    ],
)
def test_attention_is_chosen_by_what_a_kernel_takes(dtype, head_size, length, platform, by):
    asked = dtype, head_size, length, platform
    assert attention.choose_implementation("auto", *asked) == by
    assert attention.choose_implementation("xla", *asked) == "xla"
    attention_kernels.check("auto", *asked)
    for kernel in ("cudnn", "splash"):
        if by == kernel:
            attention_kernels.check(kernel, *asked)
            continue
        with pytest.raises(ValueError, match=rf"attention: {kernel} .* expected auto, own or xla"):
            attention_kernels.check(kernel, *asked)


def test_cudnn_where_it_cannot_be_is_rejected_before_a_compile(tiny):
    with pytest.raises(BadInput, match=r"model.attention: cudnn runs on NVIDIA GPUs, not on cpu"):
        trainer(tiny({"model.attention": "cudnn"}))


# Precision.


def products(jaxpr):
    """(kinds of the operands, kinds of the results) of dot products, and those of exponentials."""
    dots, exps = [], []
    for eqn in jaxpr.eqns:
        kinds = [str(v.aval.dtype) for v in eqn.invars if hasattr(v.aval, "dtype")]
        if eqn.primitive.name in ("dot_general", "conv_general_dilated"):
            dots.append(tuple(kinds[:2]))
        if eqn.primitive.name in ("exp", "exp2", "log", "rsqrt"):
            exps += kinds[:1]
        for value in eqn.params.values():
            for one in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(one, "jaxpr", one)
                if hasattr(inner, "eqns"):
                    more = products(inner)
                    dots, exps = dots + more[0], exps + more[1]
    return dots, exps


LOW = {
    "transformer": models.build("transformer", **SMALL | {"dtype": "bfloat16", "qk_norm": True}),
    "GPT-2": models.build(
        "transformer",
        **SMALL
        | {"dtype": "bfloat16", "norm": "layer", "positions": "learned", "activation": "gelu"},
    ),
    "gru": models.build("gru", **GRU | {"dtype": "bfloat16"}, tie_embeddings=False),
}


@pytest.mark.parametrize("name", LOW)
@pytest.mark.parametrize("chunk", [0, 8])
def test_bfloat16_is_for_products_and_float32_for_the_rest(name, chunk):
    """Weights, moments, norms, softmax and loss are float32; products have bfloat16 operands."""
    model, batch = LOW[name], tokens()
    recipe = step.StepSpec(
        model, LanguageModeling(chunk=chunk), Optimizer("adamw"), Choice("constant")
    )
    hyper = trainer_hyper()
    state = jax.eval_shape(recipe.init, jax.random.key(0), batch["inputs"], hyper)
    kinds = {str(x.dtype) for x in jax.tree.leaves(state)}
    assert kinds <= {"float32", "int32"}

    def of(recipe):
        return products(jax.make_jaxpr(recipe.gradient)(state.params, batch).jaxpr)

    dots, exps = of(recipe)
    assert len(dots) > 8
    assert {("bfloat16", "bfloat16")} == set(dots)
    assert set(exps) == {"float32"}
    exact = models.build(**model.described() | {"dtype": "float32"})
    assert {("float32", "float32")} == set(of(recipe._replace(model=exact))[0])


def trainer_hyper():
    numbers = {"lr": 1e-2, "warmup": 0.0, "total": 40.0, "clip": 1.0, "ema": None, "skip": None}
    hyper = step.Hyper(**numbers, optimizer=NUMBERS["adamw"], schedule={})
    return jax.tree.map(np.float32, hyper)


@pytest.mark.slow
def test_training_in_bfloat16_stays_near_float32(tiny):
    """Over 40 steps within 1 % of the loss; the products are rounded to 8 bits each."""
    config = {"model.width": 32, "model.hidden": 64, "horizon.amount": 40.0}
    exact, low = (
        losses(trainer(tiny(config | {"model.dtype": kind})), 40)[1]
        for kind in ("float32", "bfloat16")
    )
    assert exact[-1] < 0.8 * exact[0]
    np.testing.assert_allclose(low, exact, rtol=1e-2)
    assert np.abs(low - exact).max() > 1e-5


# The program.


def instructions(config):
    return sum(" = " in line for line in lowered(config)[1].as_text().splitlines())


def test_the_program_is_as_large_for_any_depth(tiny):
    few, many = (instructions(tiny({"model.depth": depth})) for depth in (12, 48))
    assert many <= 1.05 * few
    unrolled = instructions(tiny({"model.depth": 12, "model.unroll": 4}))
    assert unrolled > 1.3 * few


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [ONE, ALL])
def test_a_donated_state_is_overwritten(sizes, tiny):
    made, program = compiled(tiny(), sizes)
    analysis = program.memory_analysis()
    state = device_memory.bytes_per_device(made.abstract)
    assert analysis.alias_size_in_bytes == state
    assert analysis.output_size_in_bytes < 1.01 * state + 1024  # and the metrics
    kept = jax.jit(made.spec.step).lower(
        made.abstract, {k: v[0] for k, v in made.batches(0, 1, 1).items()}, made.hyper
    )
    assert kept.compile().memory_analysis().alias_size_in_bytes == 0
