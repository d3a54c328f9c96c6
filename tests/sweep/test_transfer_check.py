"""The check of transfer: what it measures, that it goes on where it was, and what it refuses."""

import json

import jax
import numpy as np
import pytest

from experiments import transfer as command
from research.errors import BadInput
from research.report import transfer_text
from research.sweep import transfer
from research.training import coordinates
from research.training.make_run import make_run
from research.training.trainer import host_batches, step_spec

pytestmark = pytest.mark.usefixtures("barely_optimized")

RULE = {"optim.transfer.rule": "complete_p", "optim.transfer.width": 8}
RULE |= {"optim.transfer.depth": 1, "optim.transfer.head_size": 4, "optim.clip": None}
SMALL = RULE | {"model.width": 8, "model.hidden": 16, "model.depth": 1, "data.context": 16}
CHECK = transfer.Check((8, 16), (1, 2), 2)


def test_sizes_and_changes_are_those_of_the_steps(tiny):
    run = make_run(tiny(SMALL | {"model.depth": 2}))
    found = coordinates.measure(run, 2, 3)
    assert {"embedding", "blocks/attn", "blocks/mlp", "residual", "logits"} <= found.keys()
    assert all(x.shape == (2, 4, 2) for x in found.values())
    assert all((x[:, 0, 1] == 0).all() for x in found.values())  # nothing has changed yet
    spec, batches = step_spec(run), host_batches(run, 0, 3, 3)
    state = spec.init(jax.random.key(run.seed), batches["inputs"][0], run.hyper)
    model, first = run.model, state.params
    for t in range(3):
        state, _ = spec.step(state, {k: x[t] for k, x in batches.items()}, run.hyper)

    def logits(params):
        return model.unembed(params, model.apply(params, batches["inputs"][0]))

    change = float(np.sqrt(np.mean(np.square(logits(state.params) - logits(first)))))
    assert found["logits"][0, 3, 1] == pytest.approx(change, rel=1e-4)
    assert found["logits"][1, 3, 1] != pytest.approx(change, rel=1e-4)  # another seed


def test_a_slope_is_recovered_with_its_interval():
    widths, rng = np.array([8, 16, 32, 64]), np.random.default_rng(0)
    noise = np.exp(rng.normal(0, 0.01, (4, 3, 11)))
    flat, steep = (noise * widths[:, None, None] ** power for power in (0.0, 0.5))
    for sizes, slope in ((flat, 0.0), (steep, 0.5)):
        found = transfer._slopes(list(widths), sizes)
        assert [entry["step"] for entry in found] == list(range(2, 11))
        assert all(abs(entry["slope"] - slope) < 0.02 for entry in found)
        assert all(e["interval"][0] <= e["slope"] <= e["interval"][1] for e in found)
    assert found[0]["interval"][0] > 0.25


def test_the_document_has_both_and_what_was_measured_is_kept(tiny, tmp_path, monkeypatch):
    config, said = tiny(SMALL), []
    found = transfer.coordinate_check(config, CHECK, tmp_path, said.append)
    assert len(said) == 6  # three shapes with the rule, three without
    assert found["rule"]["transfer"] == "complete_p"
    assert found["standard"]["transfer"] == "none"
    for which in ("rule", "standard"):
        part = found[which]
        slopes = [
            e["slope"] for n in part["counted"] for k in part["modules"][n].values() for e in k
        ]
        assert part["max_abs_slope_width"] == max(map(abs, slopes))
        assert part["depth_ratio"] >= 1
    assert found["rule"]["max_abs_slope_width"] != found["standard"]["max_abs_slope_width"]
    words = transfer_text.coordinates(found)
    assert "with the rule (complete_p): largest slope in width" in words
    assert transfer_text.draw(found).png[:4] == b"\x89PNG"
    monkeypatch.setattr(coordinates, "measure", None)  # it is not asked again
    again = transfer.coordinate_check(config, CHECK, tmp_path, said.append)
    assert json.dumps(again) == json.dumps(found)
    with pytest.raises(TypeError):
        transfer.coordinate_check(config, transfer.Check((8, 24), (1, 2), 2), tmp_path, said.append)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--stages=rates"], "--stages=rates: 'rates'; expected coordinates"),
        (["--widths=64"], "--widths=64: expected at least two whole numbers"),
        (["--depths=2,x"], "--depths=2,x: expected at least two whole numbers"),
        (["--seeds=1"], "--seeds=1: expected at least 2"),
        (["--lr=-1"], "--lr=-1.0: expected a number above 0"),
        (["--config.optim.transfer.rule=none"], "optim.transfer.rule: none; expected the rule"),
    ],
)
def test_bad_flags_are_refused(flags, says, tmp_path):
    with pytest.raises(BadInput) as refused:
        command.main(["--config=configs/transfer.py", f"--workdir={tmp_path}", *flags])
    assert says in str(refused.value)
