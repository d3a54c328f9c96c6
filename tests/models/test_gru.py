"""Properties of the GRU: the cell of the books, what sees what, and what it counts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import models
from research.models import accounting
from research.models.gru import GRUConfig, nth_size
from research.params import flatten_dict, match_path
from research.training.language_modeling import LanguageModeling
from tests.models.test_accounting import xla_dot_flops

SMALL = {
    "vocab": 61,
    "context": 16,
    "width": 32,
    "depth": 2,
    "tie_embeddings": False,
    "dtype": "float32",
    "unroll": 1,
}
INPUTS = jax.ShapeDtypeStruct((2, 16), jnp.int32)


def build(**changes):
    return models.build("gru", **SMALL | changes)


def tokens(batch=2, length=16, seed=0):
    return np.random.default_rng(seed).integers(0, 61, (batch, length), np.int32)


def logits(model, params, inputs):
    out = model.unembed(params, model.apply(params, inputs))
    return out.reshape(*inputs.shape, -1)


def started(**changes):
    """A model whose biases are not zero, so that their place matters."""
    model = build(**changes)
    params = model.init(jax.random.key(0), tokens())
    leaves, tree = jax.tree.flatten(params)
    noise = np.random.default_rng(1)
    leaves = [x + 0.3 * noise.standard_normal(x.shape, np.float32) for x in leaves]
    return model, jax.tree.unflatten(tree, leaves)


def in_numpy(params, inputs, reset_before=False):
    """Hidden states [B, T, D] in float64, gate by gate; `reset_before` is the other cell, whose
    reset gate comes before the recurrent product."""

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    table = params["embed"]["embedding"]
    x = table[inputs] * np.sqrt(table.shape[1])
    for name in ("layer0", "layer1"):
        layer = params[name]
        w_r, w_z, w_n = np.split(layer["input"]["kernel"], 3, axis=1)
        b_r, b_z, b_n = np.split(layer["input"]["bias"], 3)
        u_r, u_z, u_n = np.split(layer["recurrent"]["kernel"], 3, axis=1)
        c = layer["recurrent"]["bias"]
        h, out = np.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            r = sigmoid(x[:, t] @ w_r + b_r + h @ u_r)
            z = sigmoid(x[:, t] @ w_z + b_z + h @ u_z)
            recurrent = (r * h) @ u_n + c if reset_before else r * (h @ u_n + c)
            n = np.tanh(x[:, t] @ w_n + b_n + recurrent)
            h = (1 - z) * n + z * h
            out.append(h)
        x = np.stack(out, axis=1)
    return x


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": True}, {"unroll": 5}])
def test_the_cell_is_that_of_its_equations(changes):
    model, params = started(**changes)
    hidden = np.asarray(model.apply(params, tokens())).reshape(2, 16, -1)
    np.testing.assert_allclose(hidden, in_numpy(params, tokens()), atol=1e-5)
    other = in_numpy(params, tokens(), reset_before=True)
    assert np.abs(hidden - other).max() > 1e-2
    table = (
        params["embed"]["embedding"].T if model.spec.tie_embeddings else params["head"]["kernel"]
    )
    out = hidden @ np.asarray(table)
    np.testing.assert_allclose(logits(model, params, tokens()), out, atol=1e-4)


def test_the_cell_is_that_of_pytorch():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    model, params = started()
    theirs = torch.nn.GRU(32, 32, num_layers=2, batch_first=True)
    with torch.no_grad():
        for i in range(2):
            layer = jax.tree.map(np.array, params[f"layer{i}"])
            c_3D = np.concatenate([np.zeros(64, np.float32), layer["recurrent"]["bias"]])
            for name, value in {
                "weight_ih": layer["input"]["kernel"].T,
                "weight_hh": layer["recurrent"]["kernel"].T,
                "bias_ih": layer["input"]["bias"],
                "bias_hh": c_3D,
            }.items():
                getattr(theirs, f"{name}_l{i}").copy_(torch.tensor(value))
        table = np.asarray(params["embed"]["embedding"])
        out, last = theirs(torch.tensor(table[tokens()] * np.float32(np.sqrt(32))))
    hidden, state = model.decode(params, tokens(), model.init_cache(2, 16), 0)
    np.testing.assert_allclose(np.asarray(hidden).reshape(2, 16, -1), out.numpy(), atol=1e-5)
    np.testing.assert_allclose(np.stack(state), last.numpy(), atol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": True}, {"dtype": "bfloat16"}])
def test_states_see_the_past_and_the_present_and_nothing_else(changes):
    model, params = started(**changes)
    at = 7

    def state_from_embeddings(embedded):
        """The state after token `at`, as a function of what is looked up for every position."""
        places = jnp.arange(16, dtype=jnp.int32)[None]  # token t is row t: its own embedding
        hidden = model.apply(params | {"embed": {"embedding": embedded}}, places)
        return jnp.sum(hidden.astype(jnp.float32)[at] ** 2)

    grads = jax.grad(state_from_embeddings)(params["embed"]["embedding"])[:16]
    size = np.abs(np.asarray(grads)).sum(-1)
    assert (size[at + 1 :] == 0).all()
    assert (size[: at + 1] > 0).all()


def test_examples_of_a_batch_do_not_see_each_other():
    model, params = started()
    changed = tokens()
    changed[1] = tokens(seed=5)[1]
    before, after = (logits(model, params, inputs) for inputs in (tokens(), changed))
    np.testing.assert_array_equal(before[0], after[0])
    assert np.abs(before[1] - after[1]).max() > 1e-2


def test_unrolling_does_not_change_the_function():
    plain, other = build(), build(unroll=4)
    params = plain.init(jax.random.key(0), tokens())
    jax.tree.map(np.testing.assert_array_equal, params, other.init(jax.random.key(0), tokens()))

    def loss(model):
        return lambda p: jnp.mean(logits(model, p, tokens()) ** 2)

    grads = [jax.jit(jax.grad(loss(m)))(params) for m in (plain, other)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7), *grads)


def test_the_inputs_of_all_steps_are_one_product():
    """Of the loop over time, only the recurrent product is in its body."""
    model = build(depth=1)

    def dots(jaxpr):
        return str(jaxpr).count("dot_general")

    def forward(params, inputs):
        return jax.vjp(lambda p: model.apply(p, inputs), params)[0]

    jaxpr = jax.make_jaxpr(forward)(model.shapes(INPUTS), jnp.zeros(INPUTS.shape, int)).jaxpr
    (loop,) = (e for e in jaxpr.eqns if e.primitive.name == "scan")
    assert loop.params["length"] == 16
    assert dots(loop.params["jaxpr"]) == 1
    assert dots(jaxpr) == 2


def test_the_recurrent_matrix_of_every_gate_is_orthogonal_and_its_own():
    params = build().init(jax.random.key(0), tokens())
    gates = np.split(np.asarray(params["layer0"]["recurrent"]["kernel"]), 3, axis=1)
    for gate in gates:
        np.testing.assert_allclose(gate @ gate.T, np.eye(32), atol=1e-5)
    assert np.abs(gates[0] - gates[1]).max() > 0.1
    other = params["layer1"]["recurrent"]["kernel"]
    assert np.abs(other - params["layer0"]["recurrent"]["kernel"]).max() > 0.1


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_weights_states_and_logits():
    model = build(dtype="bfloat16")
    params = model.init(jax.random.key(0), tokens())
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    hidden, state = model.decode(params, tokens(), model.init_cache(2, 16), 0)
    assert hidden.dtype == jnp.bfloat16
    assert {h.dtype for h in state} == {jnp.dtype("float32")}
    assert model.unembed(params, hidden).dtype == jnp.float32
    exact = logits(build(), params, tokens())
    difference = np.abs(logits(model, params, tokens()) - exact).max()
    assert 0 < difference < 0.1 * np.abs(exact).max()


def test_first_loss_is_near_that_of_a_uniform_guess():
    model = build()
    out = logits(model, model.init(jax.random.key(0), tokens(8)), tokens(8))
    nats = jax.nn.logsumexp(out, -1) - jnp.take_along_axis(out, tokens(8)[..., None], -1)[..., 0]
    assert abs(float(nats.mean()) - np.log(61)) < 0.3


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": True}, {"depth": 3}])
def test_exact_flops_are_what_xla_counts_in_a_training_step(changes):
    model = build(**changes, unroll=16)
    inputs = jnp.zeros(INPUTS.shape, INPUTS.dtype)

    def loss(params):
        # The first state is an input here: XLA would leave out the products of a known zero,
        # which it cannot in the loop that trains.
        weights, state = params
        hidden, _ = model.decode(weights, inputs, state, 0)
        nats = jax.nn.logsumexp(model.unembed(weights, hidden), -1)
        return nats.sum()

    step = jax.jit(jax.value_and_grad(loss))
    abstract = (model.shapes(INPUTS), jax.eval_shape(lambda: model.init_cache(2, 16)))
    counted = xla_dot_flops(step.lower(abstract).compile().as_text())
    exact = accounting.step_flops(model, batch=2)
    assert counted == pytest.approx(exact, rel=0.01)
    assert counted != pytest.approx(exact - 6 * 2 * 16 * 32 * 61, rel=0.01)


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": True}])
def test_groups_add_up_to_the_tree(changes):
    model = build(**changes)
    counts = accounting.params(model, INPUTS)
    leaves = jax.tree.leaves(model.init(jax.random.key(0), tokens()))
    assert counts["params"] == sum(counts["groups"].values()) == sum(x.size for x in leaves)
    per_layer = {"input": 3 * 32 * 32 + 3 * 32, "recurrent": 3 * 32 * 32 + 32}
    assert {k: counts["groups"][k] for k in per_layer} == {k: 2 * n for k, n in per_layer.items()}
    assert counts["params_non_embedding"] == 2 * sum(per_layer.values())


def test_every_leaf_has_a_sharding_of_its_rank_that_divides():
    model = build()
    for path, leaf in flatten_dict(model.shapes(INPUTS)):
        axes = match_path(model.sharding, path)
        assert len(axes) == leaf.ndim, path
        for axis, n in zip(axes, leaf.shape, strict=True):
            if "embed" not in path and "head" not in path:  # the vocabulary is the data's
                assert axis is None or n % 8 == 0, path


def test_every_rung_is_a_valid_model_and_larger_than_the_one_below():
    before = 0
    for i in [*range(1, 6), 63, 64, 65, 66]:
        spec = GRUConfig(**SMALL | nth_size(i))
        count = accounting.params(models.build("gru", **dataclasses.asdict(spec)), INPUTS)
        assert count["params"] > before
        before = count["params"]


@pytest.mark.slow
def test_a_loss_falls_when_it_is_trained():
    """A sequence that only memory predicts: every token is the one before the last."""
    rng = np.random.default_rng(0)
    pairs = rng.integers(0, 61, (32, 2), np.int32)
    text = jnp.asarray(np.tile(pairs, (1, 9)))
    batch = {"inputs": text[:, :16], "targets": text[:, 1:17]}
    model = build(unroll=2)
    params = model.init(jax.random.key(0), batch["inputs"])

    def loss(params):
        terms = LanguageModeling(chunk=0).terms(model, params, batch)
        return terms["loss"].sum() / terms["count"].sum()

    @jax.jit
    def train(params):
        def step(_, params):
            grads = jax.grad(loss)(params)
            return jax.tree.map(lambda p, g: p - 0.5 * g, params, grads)

        return jax.lax.fori_loop(0, 300, step, params)

    assert float(loss(train(params))) < 0.6 * float(loss(params))
