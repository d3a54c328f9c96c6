"""Rules by which numbers follow tokens, batch and size: as numbers, as words, as the same run."""

import json
import math

import pytest

from research.config.loading import load_config
from research.config.validation import problems
from research.errors import BadInput
from research.models import accounting
from research.sweep.plan_text import law_warnings
from research.training.make_run import make_run

CONTEXT, STEPS, BATCH = 32, 12, 8  # of the tiny run
TOKENS = CONTEXT * STEPS * BATCH
ADAMW = {"b1": 0.9, "b2": 0.98, "eps": 1e-8, "weight_decay": 0.01}
PLAIN = {"optim.lr": 0.1, "optim.lr_rule": "constant"}


def horizon(rule, m_batch, m_tokens):
    """Changes: a base that this run exceeds by these ratios."""
    out = {"optim.horizon_rule.rule": rule, "optim.horizon_rule.tokens": TOKENS / m_tokens}
    return PLAIN | out | {"optim.horizon_rule.batch": round(BATCH / m_batch)}


def numbers(run):
    optim = run.config["optim"]
    return {"lr": optim["lr"], **{key: optim["optimizer"][key] for key in ADAMW}}


B, D = 2.0, 8.0
PUBLISHED = {
    "power_lines": {"lr": math.sqrt(B), "weight_decay": math.sqrt(B) / D},
    "complete_p": {
        "lr": math.sqrt(B / D),
        "weight_decay": math.sqrt(B / D),
        "eps": math.sqrt(D / B),
        "b1": (1 - 0.1 * B / D) / 0.9,
        "b2": (1 - 0.02 * B / D) / 0.98,
    },
    "marin": {"lr": math.sqrt(B) * D**-0.3, "eps": math.sqrt(D / B), "b2": 0.98},
    "token_horizon": {"lr": D**-0.32},
}


@pytest.mark.parametrize("rule", PUBLISHED)
def test_numbers_follow_tokens_and_batch_as_published(tiny, rule):
    run, plain = make_run(tiny(horizon(rule, B, D))), make_run(tiny(PLAIN))
    for key, value in numbers(plain).items():
        factor = PUBLISHED[rule].get(key, 1.0)
        assert numbers(run)[key] == pytest.approx(value * factor, rel=1e-12), key
    assert run.facts["lr"] == numbers(run)["lr"]
    assert f"horizon {rule} (" in run.facts["rules"]
    assert "batch x 2, tokens x 8: learning rate x" in run.facts["rules"]
    assert float(run.hyper.optimizer["b2"]) == pytest.approx(numbers(run)["b2"])


@pytest.mark.parametrize("rule", PUBLISHED)
def test_at_the_base_it_is_the_run_without_a_rule(tiny, rule):
    plain = make_run(tiny(PLAIN))
    same = make_run(tiny(horizon(rule, 1, 1)))
    assert same.id == plain.id
    assert make_run(tiny(horizon(rule, 2, 8))).id != plain.id  # the twin
    again = make_run(make_run(tiny(horizon(rule, 2, 8))).config)  # resolved: as numbers
    assert again.id == make_run(tiny(horizon(rule, 2, 8))).id


@pytest.mark.parametrize("rule", ["power_lines", "complete_p"])
def test_weight_decay_remembers_one_share_of_the_run(tiny, rule):
    def share(m_batch, m_tokens):
        run = make_run(tiny(horizon(rule, m_batch, m_tokens)))
        found = numbers(run)
        steps = m_tokens / m_batch  # of the run, relative to the base
        return 1 / (found["lr"] * found["weight_decay"] * steps)

    assert share(2, 8) == pytest.approx(share(4, 2))
    plain = numbers(make_run(tiny(PLAIN)))
    assert share(2, 8) == pytest.approx(1 / (plain["lr"] * plain["weight_decay"]))
    assert 1 / (plain["lr"] * plain["weight_decay"] * 4) != pytest.approx(share(2, 8))  # the twin


def test_averages_that_would_end_are_refused(tiny):
    with pytest.raises(BadInput, match=r"complete_p multiplies 1 - b1 by 16, which is 1.6 then"):
        make_run(tiny(horizon("complete_p", 4, 0.25)))
    assert make_run(tiny(horizon("complete_p", 4, 4)))


def test_rates_of_size_and_length_are_the_published_ones_times_lr(tiny):
    by = {"optim.lr": 1.0, "optim.lr_rule": "step_law"}
    run = make_run(tiny(by))
    n = run.facts["params_non_embedding"]
    assert run.facts["lr"] == pytest.approx(1.79 * n**-0.713 * TOKENS**0.307)
    assert "learning rate = 1 x 1.79 params^-0.713 tokens^0.307, of par" in run.facts["rules"]
    half = make_run(tiny(by | {"optim.lr": 0.5}))
    assert half.facts["lr"] == pytest.approx(run.facts["lr"] / 2)
    run = make_run(tiny(by | {"optim.lr_rule": "deepseek"}))
    flops = run.facts["flops"] * (1 - accounting.shares(run.model)["head_share"])
    assert run.facts["lr"] == pytest.approx(0.3118 * flops**-0.125)
    assert run.facts["lr"] != pytest.approx(0.3118 * run.facts["flops"] ** -0.125)


@pytest.mark.parametrize(
    ("rule", "size", "best"),
    [
        ("sqrt_tokens", 8, lambda t: 8 * (t / 1e6) ** 0.5),
        ("power_lines", 8, lambda t: 8 * (t / 1e6) ** 0.383),
        ("step_law", None, lambda t: 0.58 * t**0.571 / CONTEXT),
    ],
)
def test_batches_are_powers_of_two_near_the_published_ones(tiny, rule, size, best):
    tokens = 64e6
    given = {"horizon.unit": "tokens", "horizon.amount": tokens, "batch.size": size}
    run = make_run(tiny({"batch.rule": rule, **given}))
    assert run.batch & (run.batch - 1) == 0
    assert 2**-0.5 <= run.batch / best(tokens) <= 2**0.5
    assert f"tokens: batch {run.batch}" in run.facts["rules"]


RECIPE = {
    "format": "isoflop-recipe-1",
    "log_lr": {"constant": math.log(3.0), "params": -0.5, "tokens": 0.1, "batch": 0.25},
    "log_batch": {"constant": math.log(2.0), "params": 0.0, "tokens": 0.5},
    "where": {"lr": [1e-3, 1.0], "params": [1e3, 1e5], "tokens": [1e3, 1e5]},
}


@pytest.fixture
def recipe(tmp_path):
    def write(**changes):
        path = tmp_path / "recipe.json"
        path.write_text(json.dumps(RECIPE | changes))
        return str(path)

    return write


def test_a_fitted_recipe_gives_rate_and_batch_and_says_where_it_was_not_fitted(tiny, recipe):
    fitted = {"optim.recipe": recipe(), "optim.lr": 1.0, "optim.lr_rule": "fitted"}
    run = make_run(tiny(fitted))
    n, b = run.facts["params"], BATCH * CONTEXT
    assert run.facts["lr"] == pytest.approx(3 * n**-0.5 * TOKENS**0.1 * b**0.25)
    assert "3 params^-0.5 tokens^0.1 batch^0.25" in run.facts["rules"]
    assert "outside the recipe" not in run.facts["rules"]
    assert not [line for line in law_warnings([run.facts]) if "recipe" in line]
    own = {"batch.rule": "fitted", "batch.size": None, "horizon.unit": "tokens"}
    long = make_run(tiny(fitted | own | {"horizon.amount": 2.0**20}))
    assert long.batch == 64  # 2 sqrt(2^20) tokens are 64 examples
    assert "outside the recipe: tokens 1.05e+06, fitted from 1e+03 to 1e+05" in long.facts["rules"]
    (told,) = [line for line in law_warnings([run.facts, long.facts]) if "recipe" in line]
    assert told.startswith("1 of 2 runs lie outside what their recipe was fitted to: tokens 1.05e")
    assert long.id == make_run(long.config).id  # without the file
    rate_given = own | {"optim.recipe": recipe(), "horizon.amount": 2.0**20}
    assert "outside the recipe: tokens 1.05e+06" in make_run(tiny(rate_given)).facts["rules"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": "other"}, "its format is not 'isoflop-recipe-1'"),
        ({"log_lr": None}, "no log_lr"),
        ({"log_lr": {"params": 1.0}}, "log_lr and where must hold numbers alone"),
        ({"log_lr": {"constant": "a"}}, "log_lr and where must hold numbers alone"),
        ({"where": {"params": [1.0]}}, "log_lr and where must hold numbers alone"),
        ({"where": 3}, "log_lr and where must hold numbers alone"),
        ({"log_lr": {"constant": 1e3}}, r"its law gives e\^1000 for this run"),
        ({"log_lr": {"constant": -1e3}}, r"its law gives e\^-1000 for this run"),
    ],
)
def test_a_recipe_that_is_none_is_refused(tiny, recipe, changes, says):
    fitted = {"optim.recipe": recipe(**changes), "optim.lr_rule": "fitted"}
    with pytest.raises(BadInput, match=says):
        make_run(tiny(fitted))
    no_batch = {"optim.recipe": recipe(log_batch=None), "batch.rule": "fitted"}
    no_batch |= {"batch.size": None, "horizon.unit": "tokens", "horizon.amount": 1e5}
    with pytest.raises(BadInput, match=r"no law of the batch; expected another batch.rule"):
        make_run(tiny(no_batch))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"optim.lr_rule": "fitted"}, "optim.recipe: none, but a rule is fitted; expected the rec"),
        ({"batch.rule": "deepseek"}, "batch.size: 8 is given, but batch.rule = deepseek sets it"),
        ({"optim.horizon_rule.rule": "marin"}, "optim.horizon_rule.tokens: none; marin needs"),
        (
            horizon("marin", 1, 1) | {"optim.optimizer.name": "lion"},
            "marin is a rule of Adam's numbers, not of lion",
        ),
        (
            horizon("marin", 1, 1) | {"optim.lr_rule": "step_law"},
            "lr_rule: step_law follows size and length itself, and optim.horizon_rule.rule is",
        ),
        (
            {"optim.lr_rule": "step_law", "optim.transfer.rule": "mup", "optim.transfer.width": 8}
            | {"optim.transfer.head_size": 4},
            "step_law follows size and length itself, and optim.transfer.rule is mup",
        ),
    ],
)
def test_rules_that_lack_something_or_count_twice_are_refused_before_jax(tiny, changes, says):
    with pytest.raises(BadInput) as refused:
        tiny(changes)
    assert any(says in line for line in refused.value.problems), refused.value.problems
    assert not problems(load_config("configs/lm_transformer.py")[0])  # the twin
