"""Learning rate and weight decay by path, and frozen parameters: what matches is changed so, all
else is as it was, and what is frozen has no optimizer state."""

import jax
import numpy as np
import pytest

from research.errors import BadInput
from research.parallel import device_mesh
from research.params import leaves_by_path
from research.runs import stored_state
from research.runs.directory import RunDirectory
from research.training.loop import train_run
from research.training.make_run import make_run
from research.training.trainer import Trainer, resident

pytestmark = pytest.mark.usefixtures("barely_optimized")

ONE = {"data": 1, "fsdp": 1, "tensor": 1}
SGD = {"optim.optimizer.name": "sgd", "optim.optimizer.momentum": 0.0, "optim.clip": None}
SGD |= {"optim.optimizer.nesterov": False, "optim.optimizer.weight_decay": 0.0}
SGD |= {"optim.warmup.amount": 0.0, "optim.schedule.name": "constant"}
FROZEN = {"optim.paths": [["embed/.*", "frozen"], ["blocks/attn/.*", "frozen"]]}


def trainer(config):
    run = make_run(config)
    return Trainer(run, device_mesh.make_mesh(ONE, run.batch))


def steps(config, n=1):
    """The parameters before and after `n` steps, by path, the state, and the metrics."""
    made = trainer(config)
    state = made.init()
    first = {k: np.asarray(x) for k, x in leaves_by_path(state.params).items()}
    state, metrics = made.steps(state, made.batches(0, n, 10), n)
    last = {k: np.asarray(x) for k, x in leaves_by_path(state.params).items()}
    return first, last, state, jax.device_get(metrics)


def change(config):
    first, last, *_ = steps(config)
    return {path: last[path] - first[path] for path in first}


def is_frozen(path):
    return path.startswith(("embed/", "blocks/attn/"))


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "lion", "adafactor", "sgd"])
@pytest.mark.parametrize(
    "more",
    [pytest.param({}, marks=pytest.mark.slow), {"batch.grad_accumulation": 2, "optim.skip": 5.0}],
)
def test_what_is_frozen_stays_bit_by_bit_and_has_no_state(tiny, optimizer, more):
    options = {"muon": {"momentum": 0.9, "adam_scale": 1.0}}
    options |= {"adafactor": {"decay_rate": 0.8, "clip_threshold": 1.0, "scale_by_params": False,
                              "momentum": None}}  # fmt: skip
    options |= {"sgd": {"momentum": 0.9, "nesterov": False}}
    keys = options.get(optimizer, {}) | {"name": optimizer}
    config = tiny({**FROZEN, **more, **{f"optim.optimizer.{k}": v for k, v in keys.items()}})
    first, last, state, metrics = steps(config, 3)
    for path in first:
        assert (first[path] == last[path]).all() == is_frozen(path), path
    there = [path for path in leaves_by_path(state.opt_state) if "/" in path]
    assert not any("embed/" in path or "/attn/" in path for path in there)
    assert any("/mlp/" in path for path in there)
    assert np.isfinite(metrics["train_loss"]).all()


def test_a_frozen_run_holds_less_and_clips_by_what_is_trained(tiny):
    plain, frozen = make_run(tiny()), make_run(tiny(FROZEN))
    mesh = device_mesh.make_mesh(ONE, plain.batch)
    some, fewer = (resident(run, mesh) for run in (plain, frozen))
    count = sum(x.size for p, x in leaves_by_path(trainer(tiny()).abstract.params).items()
                if is_frozen(p))  # fmt: skip
    assert some.optimizer - fewer.optimizer == 2 * 4 * count  # two moments
    assert some.parameters == fewer.parameters
    norms = [steps(config)[3]["grad_norm"][0] for config in (tiny(), tiny(FROZEN))]
    assert norms[1] < norms[0]


def test_a_rate_by_path_scales_the_update_of_what_matches(tiny):
    plain = change(tiny(SGD))
    scaled = change(tiny({**SGD, "optim.paths": [["blocks/.*", {"lr": 0.1}]]}))
    for path, moved in plain.items():
        factor = 0.1 if path.startswith("blocks/") else 1.0
        size = np.abs(moved).max()
        np.testing.assert_allclose(scaled[path], factor * moved, rtol=1e-3, atol=1e-4 * size)
        assert np.abs(scaled[path] - moved).max() > 0.5 * size or factor == 1


def test_a_decay_by_path_is_of_what_matches(tiny):
    decayed = SGD | {"optim.optimizer.weight_decay": 0.5}
    rule = {"optim.paths": [["mlp/.*", {"decay": 0.0}]]}
    none, some, part = (change(tiny(c)) for c in (SGD, decayed, {**decayed, **rule}))
    for path in none:
        expected = none if "/mlp/" in path else some
        np.testing.assert_allclose(part[path], expected[path], rtol=1e-4, atol=1e-7)
    assert (none["blocks/mlp/up/kernel"] != some["blocks/mlp/up/kernel"]).any()


def test_a_rule_of_transfer_holds_beside_it(tiny):
    moved = {"optim.transfer.rule": "mup", "optim.transfer.width": 8}
    moved |= {"optim.transfer.head_size": 4}
    plain = dict(make_run(tiny(moved)).transfer.factors)
    paths = {"optim.paths": [["blocks/.*", {"lr": 0.5, "decay": 2.0}], ["embed/.*", "frozen"]]}
    both = make_run(tiny({**moved, **paths}))
    for path, factors in both.transfer.factors:
        times = (0.5, 2.0) if path.startswith("blocks/") else (1.0, 1.0)
        expected = plain[path].lr * times[0], plain[path].decay * times[1]
        assert (factors.lr, factors.decay) == pytest.approx(expected)
        assert factors.forward == plain[path].forward
    assert both.transfer.frozen == {"embed/embedding"}
    assert "optim.paths: blocks/.*: lr x 0.5, decay x 2 (" in both.facts["rules"]
    assert "optim.paths: embed/.*: frozen (1 arrays, 4,096 parameters)" in both.facts["rules"]


def test_a_run_without_paths_is_what_it_was_and_one_with_them_repeats_itself(tiny):
    plain, frozen = make_run(tiny()), make_run(tiny(FROZEN))
    assert "paths" not in plain.config["optim"]
    assert make_run(tiny({"optim.paths": None})).id == plain.id != frozen.id
    assert make_run(frozen.config).id == frozen.id
    assert plain.transfer is None


def test_it_is_saved_and_resumed(tiny, tmp_path):
    whole = make_run(tiny({**FROZEN, "save.every": 4, "save.keep": 5}))
    with RunDirectory(tmp_path, whole.id) as directory:
        result = train_run(whole, directory)
        for step in (8, 12):
            path = directory.path / "checkpoints" / str(step)
            path.rename(tmp_path / str(step))
        (directory.path / "result.json").unlink()
        again = train_run(whole, directory)
    assert again["loss"] == result["loss"]
    path = stored_state.latest_intact(directory.path)[1]
    start = trainer(tiny(FROZEN)).init()
    kept = leaves_by_path(stored_state.read_arrays(path, "params"))
    np.testing.assert_array_equal(kept["embed/embedding"], start.params["embed"]["embedding"])


def test_fine_tuning_may_hold_all_but_the_head(tiny, tmp_path):
    source = make_run(tiny({"horizon.amount": 2.0}))
    with RunDirectory(tmp_path, source.id) as directory:
        train_run(source, directory)
    paths = [["(embed|blocks|final_norm)/.*", "frozen"]]
    first, last, *_ = steps(tiny({"init.run": str(directory.path), "optim.paths": paths}), 2)
    kept = leaves_by_path(stored_state.read_arrays(
        stored_state.latest_intact(directory.path)[1], "params"))  # fmt: skip
    changed = [path for path in first if (last[path] != kept[path]).any()]
    assert changed == ["head/kernel"]


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (
            [["blocsk/.*", "frozen"]],
            r"'blocsk/.\*' matches no parameter; there are blocks/attn/key",
        ),
        (
            [["blocks/.*", "frozen"], ["mlp/.*", {"lr": 2.0}]],
            "'blocks/mlp/.*' matches .*; expected",
        ),
        ([[".*", "frozen"]], "every parameter is frozen; expected one to train"),
    ],
)
def test_rules_that_no_parameter_fits_are_refused(tiny, rules, words):
    with pytest.raises(BadInput, match=words):
        make_run(tiny({"optim.paths": rules}))


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ("frozen", r"optim.paths: 'frozen' is no list of pairs; expected a list of pairs like"),
        ([], "is no list of pairs"),
        ([["a"]], "is no list of pairs"),
        ([["(", "frozen"]], r"'\(' is no regular expression"),
        ([["a", "cold"]], "'a': 'cold'; expected frozen, or factors lr, decay"),
        ([["a", {"rate": 2}]], "expected frozen, or factors lr, decay"),
        ([["a", {"lr": 0}]], "'a': lr is 0; expected frozen, or a factor above 0"),
        ([["a", {"decay": -1.0}]], "decay is -1.0; expected a factor of at least 0"),
        ([["a", {"lr": True}]], "lr is True; expected"),
        ([["a", {"lr": 1e-50}]], "lr is 1e-50; expected frozen, or a factor above 0, in float32"),
        ([["a", {"decay": 10**400}]], "decay is 1000.*; expected a factor of at least 0, in float"),
    ],
)
def test_what_is_no_rule_is_refused_without_jax(tiny, rules, words):
    with pytest.raises(BadInput, match=words):
        tiny({"optim.paths": rules})
