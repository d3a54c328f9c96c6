"""The counts against what jax and XLA count themselves."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import accounting, ladder, models
from research.errors import BadInput
from research.tasks import LanguageModelling
from tests.test_models import SMALL, VARIANTS

INPUTS = jax.ShapeDtypeStruct((2, 16), jnp.int32)


def xla_dot_flops(text: str) -> int:
    """FLOPs of the dots in an optimized HLO module without loops: 2 · outputs · contracted."""
    assert " while(" not in text, "a loop body would be counted once"
    shapes = dict(re.findall(r"%([\w.\-]+) = \w+\[([\d,]*)\]", text))
    shapes |= dict(re.findall(r"([\w.\-]+): \w+\[([\d,]*)\]", text))
    total = 0
    for out, left, dims in re.findall(
        r"= \w+\[([\d,]*)\]\S* dot\(%([\w.\-]+),.*?lhs_contracting_dims=\{([\d,]*)\}", text
    ):
        left_shape = [int(n) for n in shapes[left].split(",")]
        contracted = math.prod(left_shape[int(d)] for d in dims.split(","))
        total += 2 * math.prod(int(n) for n in out.split(",") if n) * contracted
    assert total
    assert "convolution(" not in text
    return total


@pytest.mark.parametrize("changes", [c for c in VARIANTS if c.get("dtype") != "bfloat16"])
def test_exact_flops_are_what_xla_counts_in_a_training_step(changes):
    model = models.build("transformer", **SMALL | changes | {"unroll": 3})
    tokens = jnp.zeros(INPUTS.shape, INPUTS.dtype)

    def loss(params):
        terms = LanguageModelling().terms(model, params, {"inputs": tokens, "targets": tokens})
        return terms["loss"].sum()

    step = jax.jit(jax.value_and_grad(loss))
    counted = xla_dot_flops(step.lower(model.shapes(INPUTS)).compile().as_text())
    exact = accounting.step_flops(model, batch=2)
    assert counted == pytest.approx(exact, rel=0.01)
    assert counted != pytest.approx(exact - 6 * 2 * 16 * model.spec.width * 61, rel=0.01)


@pytest.mark.parametrize("changes", VARIANTS)
def test_groups_add_up_to_the_tree(changes):
    model = models.build("transformer", **SMALL | changes)
    counts = accounting.params(model, INPUTS)
    total = sum(
        x.size for x in jax.tree.leaves(model.init(jax.random.key(0), jnp.zeros((2, 16), int)))
    )
    assert counts["params"] == sum(counts["groups"].values()) == total
    assert counts["params_non_embedding"] < counts["params"]


def test_a_parameter_without_a_group_is_an_error(monkeypatch):
    model = models.build("transformer", **SMALL | {"vocab": 67})  # counts are cached by model
    monkeypatch.setattr(model.family, "GROUPS", model.family.GROUPS[1:])
    with pytest.raises(ValueError, match="embed/embedding"):
        accounting.params(model, INPUTS)


def test_a_tied_embedding_enters_the_head_and_an_untied_one_no_dot_product():
    tied, untied = (models.build("transformer", **SMALL | {"tied": t}) for t in (True, False))
    tied, untied = (accounting.params(m, INPUTS) for m in (tied, untied))
    assert tied["params_matmul"] == untied["params_matmul"]
    assert tied["params"] == untied["params"] - 61 * 32


def test_conventions_are_ordered_and_6nd_is_six_n_d():
    model = models.build("transformer", **SMALL)
    counts = accounting.params(model, INPUTS)
    flops = accounting.flops(model, counts, tokens=1600, examples=100)
    assert flops["flops_6nd"] == 6 * counts["params"] * 1600
    assert flops["flops_exact_causal"] < flops["flops_exact_full"]
    # what is not attention scores is 6 x (parameters in dot products) x tokens
    parts = model.family.forward_flops(model.spec)
    scores = 3 * 100 * parts["attention_full"]
    assert flops["flops_exact_full"] - scores == 6 * counts["params_matmul"] * 1600


@pytest.mark.parametrize("target", [2e4, 1e5, 1e6, 3e7])
def test_a_target_size_is_met_by_the_nearest_rung(target):
    fields = {k: v for k, v in SMALL.items() if k not in models.family("transformer").SIZED}
    model = ladder.at_size(target, "transformer", fields, INPUTS)
    count = accounting.params(model, INPUTS)["params"]
    for step in (-1, 1):
        rung = (
            model.spec.width // 8
            if model.spec.width <= 512
            else 64 + (model.spec.width - 512) // 64
        )
        neighbour = models.family("transformer").rung(rung + step, activation="swiglu")
        other = models.build("transformer", **fields | neighbour)
        other = accounting.params(other, INPUTS)["params"]
        assert abs(np.log(count / target)) <= abs(np.log(other / target))


def test_a_size_below_the_ladder_is_refused():
    fields = {k: v for k, v in SMALL.items() if k not in models.family("transformer").SIZED}
    with pytest.raises(BadInput, match="nearest transformer"):
        ladder.at_size(50, "transformer", fields, INPUTS)


@pytest.mark.parametrize(
    ("unit", "amount", "steps"),
    [
        ("steps", 7, 7),
        ("examples", 80, 10),
        ("tokens", 8 * 16 * 5, 5),
        ("epochs", 2, 25),
        ("flops", 3e9, 30),
        ("tokens_per_param", 20, 156),
        ("tokens", 1, 1),
    ],
)
def test_every_horizon_becomes_steps(unit, amount, steps):
    counts = {"params": 1000}
    got = ladder.steps(unit, amount, batch=8, counts=counts, flops=1e8, tokens=16, n=100)
    assert got == steps
