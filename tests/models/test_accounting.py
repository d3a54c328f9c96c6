"""The counts against what jax and XLA count themselves."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import models
from research.config import schema
from research.errors import BadInput
from research.models import accounting
from research.models.sizing import model_at_size, without_sized
from research.training import horizon as ladder
from research.training import horizon_rules, make_run
from research.training.language_modeling import LanguageModeling
from tests.models.test_models import SMALL, VARIANTS

INPUTS = jax.ShapeDtypeStruct((2, 16), jnp.int32)


def xla_dot_flops(text: str) -> int:
    """FLOPs of the dots in an optimized HLO module without loops: 2 · outputs · contracted. (XLA's
    older emitters scatter in a loop.)"""
    loops = [line for line in text.splitlines() if " while(" in line]
    assert all("scatter" in line for line in loops), "a loop body would be counted once"
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
        terms = LanguageModeling(chunk=0).terms(
            model, params, {"inputs": tokens, "targets": tokens}
        )
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
    with pytest.raises(BadInput, match="embed/embedding"):
        accounting.params(model, INPUTS)


def test_a_tied_embedding_enters_the_head_and_an_untied_one_no_dot_product():
    tied, untied = (
        models.build("transformer", **SMALL | {"tie_embeddings": t}) for t in (True, False)
    )
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
    model = model_at_size(target, "transformer", fields, INPUTS)
    count = accounting.params(model, INPUTS)["params"]
    for step in (-1, 1):
        rung = (
            model.spec.width // 8
            if model.spec.width <= 512
            else 64 + (model.spec.width - 512) // 64
        )
        neighbor = models.family("transformer").nth_size(rung + step, activation="swiglu")
        other = models.build("transformer", **fields | neighbor)
        other = accounting.params(other, INPUTS)["params"]
        assert abs(np.log(count / target)) <= abs(np.log(other / target))


@pytest.mark.parametrize(("depth", "held"), [(5, 5), (None, 2)])
def test_a_given_depth_is_fixed_and_the_size_still_met(depth, held):
    fields = without_sized("transformer", {**SMALL, "depth": depth})
    assert set(SMALL) - set(fields) == {"width", "heads", "kv_heads", "hidden"} | (
        set() if depth else {"depth"}
    )
    model = model_at_size(5e4, "transformer", fields, INPUTS)
    assert model.spec.depth == held
    assert accounting.params(model, INPUTS)["params"] == pytest.approx(5e4, rel=0.3)


def test_a_size_below_the_ladder_is_rejected():
    fields = {k: v for k, v in SMALL.items() if k not in models.family("transformer").SIZED}
    with pytest.raises(BadInput, match="nearest transformer"):
        model_at_size(50, "transformer", fields, INPUTS)


@pytest.mark.parametrize(
    ("unit", "amount", "steps"),
    [
        ("steps", 7, 7),
        ("examples", 80, 10),
        ("tokens", 8 * 16 * 5, 5),
        ("epochs", 2, 25),
        ("flops", 3e9, 30),
        ("tokens_per_param", 20, 156),
        ("tokens", 77, 1),
    ],
)
def test_every_horizon_becomes_steps(unit, amount, steps):
    got, words = ladder.training_steps({"unit": unit, "amount": amount}, 8, PER)
    assert got == steps
    assert words.startswith(f"{steps} steps of 8 x 16 tokens for {amount:g} {unit}")
    assert ("whole steps" in words) == (amount == 77)  # 1 step for three fifths of one


PER = {
    "examples": 1.0,
    "tokens": 16,
    "epochs": 1 / 100,
    "flops": 1e8 / 8,
    "tokens_per_param": 16 / 1000,
}


def test_every_unit_of_a_horizon_is_solved_and_flops_are_counted_by_its_name():
    model = models.build("transformer", **SMALL)
    counts = accounting.params(model, INPUTS)
    per = ladder.per_example(model, counts, tokens=16, n=100)
    assert {*per, "steps"} == {*schema.SECTIONS["horizon.unit"].choices, "flops_exact_full"}
    for unit in schema.FLOPS_UNITS:
        steps, _ = ladder.training_steps({"unit": unit, "amount": 1e9}, 1, per)
        spent = accounting.flops(model, counts, steps * 16, steps)
        spent["flops"] = spent["flops_exact_full"]
        assert spent[unit] == pytest.approx(1e9, rel=0.01)
        cell = horizon_rules.isoflop_budget({"unit": unit, "amount": 1e9}, steps, per)
        assert cell["budget_away"] == pytest.approx(spent[unit] / 1e9 - 1, abs=1e-12)
        assert cell["budget_convention"] == (
            unit.removeprefix("flops_") if "_" in unit else "exact_full"
        )
    steps = {
        ladder.training_steps({"unit": u, "amount": 1e9}, 1, per)[0] for u in schema.FLOPS_UNITS
    }
    assert len(steps) == len(schema.FLOPS_UNITS)  # the conventions do differ


def ruled(horizon):
    tokens = horizon_rules.examples("sqrt_tokens", horizon, PER) * PER["tokens"]
    run = horizon_rules.Point(1e6, 1e6, tokens, 1e12, PER["tokens"])
    batch = {"rule": "sqrt_tokens", "size": 8}
    return horizon_rules.batch_size(batch, None, horizon, run)


@pytest.mark.parametrize("tokens", [1e3, 3e4, 1e6, 2.3e6, 1e8])
def test_the_batch_grows_with_the_root_of_the_tokens_and_keeps_the_horizon(tokens):
    horizon = {"unit": "tokens", "amount": tokens}
    size, words = ruled(horizon)
    steps, told = ladder.training_steps(horizon, size, PER)
    assert size & (size - 1) == 0
    assert size <= max(1, 8 * (tokens / 1e6) ** 0.5 * 2**0.5)
    assert f"batch {size}" in words
    assert steps * size * 16 == pytest.approx(tokens, rel=0.01)
    assert "whole steps" not in told
    given = {"batch": {"rule": "constant", "size": 8}, "horizon": horizon}
    assert make_run._batch(given, None, ()) == (8, "")


def test_a_batch_that_is_given_may_miss_the_horizon_and_says_so():
    _, told = ladder.training_steps({"unit": "tokens", "amount": 1e3}, 32, PER)
    assert "+2.4% by whole steps" in told


def test_the_rule_for_the_batch_needs_tokens():
    with pytest.raises(BadInput, match="another unit"):
        ruled({"unit": "steps", "amount": 10})


def test_shares_are_of_the_exact_flops():
    model = models.build("transformer", **SMALL)
    shares, parts = accounting.shares(model), model.forward_flops()
    assert shares["head_share"] == pytest.approx(
        3 * parts["head"] / accounting.step_flops(model, 1)
    )
    assert 0 < shares["head_share"] + shares["attention_share"] < 1
    assert accounting.shares(models.build("linear", features=3, outputs=1)) == {
        "head_share": 0.0,
        "attention_share": 0.0,
    }
