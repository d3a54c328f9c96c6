"""The check of transfer: what it measures, that it goes on where it was, and what it refuses."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments import transfer as command
from research.errors import UNFINISHED, BadInput
from research.params import leaves_by_path
from research.report import style, transfer_text
from research.runs.table import read_table
from research.sweep import launcher, transfer
from research.sweep.points import Outcome
from research.training import coordinates
from research.training.make_run import make_run
from research.training.trainer import host_batches, step_spec

pytestmark = pytest.mark.usefixtures("barely_optimized")

RULE = {"optim.transfer.rule": "complete_p", "optim.transfer.width": 8}
RULE |= {"optim.transfer.depth": 1, "optim.transfer.head_size": 4, "optim.clip": None}
SMALL = RULE | {"model.width": 8, "model.hidden": 16, "model.depth": 1, "data.context": 16}
CHECK = transfer.Check((8, 16), (1, 2), 2)


@pytest.mark.slow
def test_sizes_and_changes_are_those_of_the_steps(tiny):
    run = make_run(tiny(SMALL | {"model.depth": 2}))
    found, zero = (coordinates.measure(run, 2, 3, zeros) for zeros in ("none", "head"))
    assert {"embedding", "blocks/attn", "blocks/mlp", "residual", "logits"} <= found.keys()
    assert all(x.shape == (2, 4, 2) for x in found.values())
    # Nothing has changed yet, but for how two programs round; after a step all has.
    assert all((x[:, 0, 1] < 1e-6).all() for x in found.values())
    assert all((x[:, 1, 1] > 1e-4).all() for x in found.values())
    spec, batches = step_spec(run), host_batches(run, 0, 3, 3)
    state = jax.jit(spec.init)(jax.random.key(run.seed), batches["inputs"][0], run.hyper)
    model, drawn, step = run.model, state.params, jax.jit(spec.step)
    logits = jax.jit(lambda p: model.unembed(p, model.apply(p, batches["inputs"][0])))

    def change(first):
        now = state._replace(params=first)
        for t in range(3):
            now, _ = step(now, {k: x[t] for k, x in batches.items()}, run.hyper)

        return float(np.sqrt(np.mean(np.square(logits(now.params) - logits(first)))))

    assert found["logits"][0, 3, 1] == pytest.approx(change(drawn), rel=1e-4)
    assert found["logits"][1, 3, 1] != pytest.approx(change(drawn), rel=1e-4)  # another seed
    assert found["logits"][0, 0, 0] > 0
    without = change(drawn | {"head": jax.tree.map(jax.numpy.zeros_like, drawn["head"])})
    assert zero["logits"][0, 3, 1] == pytest.approx(without, rel=1e-4)
    assert without != pytest.approx(change(drawn), rel=1e-2)
    assert (zero["logits"][:, 0] == 0).all()
    assert (zero["embedding"][:, 0] == found["embedding"][:, 0]).all()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("zeros", coordinates.ZEROS)
def test_what_starts_at_zero_is_the_head_and_the_ends_of_branches(tiny, tied, zeros):
    run = make_run(tiny(SMALL | {"model.tie_embeddings": tied}))
    inputs = host_batches(run, 0, 1, 1)["inputs"][0]
    params = step_spec(run).init(jax.random.key(0), inputs, run.hyper).params
    zeroed = leaves_by_path(coordinates.with_zeros(run.model, params, zeros))
    wanted = {"head/kernel"} if zeros != "none" and not tied else set()  # not the embedding
    if zeros == "outputs":
        wanted |= {"blocks/attn/out/kernel", "blocks/mlp/down/kernel"}
    for path, leaf in leaves_by_path(params).items():
        assert bool((zeroed[path] == (0 if path in wanted else leaf)).all()), path
        assert path not in wanted or leaf.any()


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


@pytest.mark.parametrize("seeds", [2, 3, 20])
def test_intervals_of_slopes_hold_the_true_one_in_95_percent(seeds):
    rng = np.random.default_rng(0)
    sizes = np.exp(rng.normal(0, 0.1, (4, seeds, 2002)))  # flat, at 2,000 steps that count
    found = transfer._slopes([8, 16, 32, 64], sizes)
    held = np.mean([entry["interval"][0] <= 0 <= entry["interval"][1] for entry in found])
    assert held == pytest.approx(0.95, abs=0.02)


def test_the_document_has_both_and_what_was_measured_is_kept(tiny, tmp_path, monkeypatch):
    """What the steps of a shape change is test_sizes_and_changes_are_those_of_the_steps."""

    starts = set()

    def measure(run, seeds, steps, zeros):
        starts.add(zeros)
        noise = np.random.default_rng(run.config["model"]["width"]).lognormal(0, 0.1, 6)
        power = 0.0 if run.transfer else 0.5
        sizes = noise.reshape(2, 1, 3)[..., :1] * run.config["model"]["width"] ** power
        return {"logits": np.ones((seeds, steps + 1, 2)) * sizes}

    monkeypatch.setattr(coordinates, "measure", measure)
    config, said = tiny(SMALL), []
    found = transfer.coordinate_check(config, CHECK, tmp_path, said.append)
    assert len(said) == 8  # two widths and two depths, with the rule and without
    assert starts == {"head", "outputs"}
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
    words = str(transfer_text.coordinates(found))
    assert "with the rule (complete_p): largest slope in width" in words
    assert style.render_figure(transfer_text.draw_coordinates(found)).png[:4] == b"\x89PNG"
    monkeypatch.setattr(coordinates, "measure", None)  # it is not asked again
    again = transfer.coordinate_check(config, CHECK, tmp_path, said.append)
    assert json.dumps(again) == json.dumps(found)
    assert found["start"] == "zero"
    with pytest.raises(TypeError):  # other shapes, or another start, are measured
        transfer.coordinate_check(
            config, dataclasses.replace(CHECK, zeros=False), tmp_path, said.append
        )
    with pytest.raises(TypeError):
        transfer.coordinate_check(config, transfer.Check((8, 24), (1, 2), 2), tmp_path, said.append)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--stages=rates"], "--stages=rates: 'rates'; expected coordinates"),
        (["--widths=64"], "--widths=64: expected at least two whole numbers"),
        (["--depths=2,x"], "--depths=2,x: expected at least two whole numbers"),
        (["--seeds=1"], "--seeds=1: expected at least 2"),
        (["--fresh_seeds=1"], "--fresh_seeds=1: expected at least 2"),
        (["--rate_widths=64"], "--rate_widths=64: expected at least two whole numbers"),
        (["--factors=1,2"], "--factors=1,2: expected at least three numbers above 0"),
        (["--factors=1,2,2"], "--factors=1,2,2: expected at least three numbers above 0"),
        (["--factors=-1,1,2"], "--factors=-1,1,2: expected at least three numbers above 0"),
        (["--factors=1,2,x"], "--factors=1,2,x: expected at least three numbers above 0"),
        (["--lr=-1"], "--lr=-1.0: expected a number above 0"),
        (["--config.optim.transfer.rule=none"], "optim.transfer.rule: none; expected the rule"),
    ],
)
def test_bad_flags_are_refused(flags, says, tmp_path):
    with pytest.raises(BadInput) as refused:
        command.main(["--config=configs/transfer.py", f"--workdir={tmp_path}", *flags])
    assert says in str(refused.value)


def test_a_rate_at_which_nothing_is_finite_is_refused(tiny, tmp_path, monkeypatch):
    wild = {"logits": np.full((2, 11, 2), np.inf)}
    monkeypatch.setattr(coordinates, "measure", lambda *_: wild)
    with pytest.raises(BadInput, match="width 8, depth 1, rule complete_p: logits is not finite"):
        transfer.coordinate_check(tiny(SMALL), CHECK, tmp_path, print)
    assert not list(tmp_path.iterdir())


SHRUNK = ["--widths=16,32", "--depths=1,2", "--seeds=2", "--executor=inline"]
SHRUNK += ["--rate_widths=16,32", "--factors=0.5,1,2,4", "--config.horizon.unit=steps"]
SHRUNK += ["--config.horizon.amount=12", "--config.eval.examples=16", "--config.eval.batch=8"]
SHRUNK += ["--config.data.context=16", "--config.batch.size=4", "--config.model.depth=1"]
SHRUNK += ["--config.optim.transfer.depth=1"]


@pytest.fixture(scope="module")
def shrunk(tmp_path_factory):
    """`make transfer`, with less of everything."""
    workdir = tmp_path_factory.mktemp("transfer")
    code = command.main(["--config=configs/transfer.py", f"--workdir={workdir}", *SHRUNK])
    return workdir, code, json.loads((workdir / "transfer.json").read_text())


@pytest.mark.slow
def test_the_document_is_what_the_runs_measured(shrunk):
    workdir, code, found = shrunk
    assert code == 0
    assert found.keys() == {"coordinates", "rate", "regret"}
    rows = read_table(workdir)
    for which, rule in (("rule", "complete_p"), ("standard", "none")):
        assert found["coordinates"][which]["max_abs_slope_width"] > 0
        assert found["coordinates"][which]["depth_ratio"] >= 1
        part = found["rate"][which]
        assert part["transfer"] == rule
        first, last = part["optima"][0]["lr"], part["optima"][-1]["lr"]
        assert part["optimum_shift_log2"] == pytest.approx(np.log2(last / first))
        for entry in part["optima"]:
            mine = {
                row["lr"]: row["loss"]
                for row in rows
                if row["optim.transfer.rule"] == rule
                and row["model.width"] == entry["width"]
                and row["seed"] == 0
            }
            assert entry["tried"]["loss"] == [mine[lr] for lr in entry["tried"]["lr"]]
            assert entry["loss"] == min(entry["tried"]["loss"])
    curves = [found["rate"][which]["optima"][0]["tried"]["loss"] for which in ("rule", "standard")]
    assert curves[0] != curves[1]  # below the base width the rule says something
    regret = found["regret"]
    tried, tuned = (np.mean(regret["candidates"][n]["loss"]) for n in ("transferred", "tuned"))
    assert regret["loss"] == pytest.approx(tried - tuned)
    assert regret["interval"][0] <= regret["loss"] <= regret["interval"][1]
    assert regret["seed_sd"] > 0
    fresh = {row["loss"] for row in rows if row["seed"] != 0}
    measured = {x for entry in regret["candidates"].values() for x in entry["loss"]}
    assert measured == fresh  # no run by which something was chosen
    for name in ("coordinates", "rate", "regret"):
        assert (workdir / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        assert transfer_text.WRITTEN[name](found[name])


@pytest.mark.slow
def test_the_command_goes_on_where_it_was(shrunk, capsys, monkeypatch):
    workdir, _, found = shrunk
    before = {row["run"] for row in read_table(workdir)}
    args = ["--config=configs/transfer.py", f"--workdir={workdir}", *SHRUNK]
    assert command.main(args) == 0
    said = capsys.readouterr().out
    assert "16 of 16 runs are done, 0 to train" in said
    assert said.splitlines()[-1] == str(workdir / "transfer.json")
    assert json.loads((workdir / "transfer.json").read_text()) == found
    assert {row["run"] for row in read_table(workdir)} == before
    # Without runs that it needs a stage has no figures.
    gone = Outcome(missing={"abc": "failed: no disk"})
    monkeypatch.setattr(launcher, "launch_sweep", lambda *_: gone)
    assert command.main([*args, "--stages=rate,regret"]) == UNFINISHED
    assert "missing: run abc: failed: no disk" in capsys.readouterr().out
    assert json.loads((workdir / "transfer.json").read_text()) == {}
