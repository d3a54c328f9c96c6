"""Every pair of flags of experiments.fit works, or is refused with a message."""

import ast
import csv
import dataclasses
import itertools
import math

import numpy as np
import pytest

from experiments import fit as command
from research.errors import BadInput
from research.io import files
from research.report import fit_figures
from research.scaling import (
    analysis,
    analyze,
    design,
    envelope,
    extrapolation,
    isoflop,
    laws,
    multiverse,
    optimize,
    uncertainty,
)
from research.scaling import fit as fit_module

FLAGS = (
    *("columns=params=params_non_embedding", "curves", "next_runs=1e21", "anytime", "multiverse"),
    *("next_config=configs/lm_transformer.py", "against=unique_tokens", "objective=mse"),
    *("huber_delta=0.01", "where=group==muon", "holdout=largest", "drop_top_loss=2"),
    *("bootstrap=0", "bootstrap=5", "cluster=group", "seed=1", "method=parabola", "noise=0.01"),
    "six_nd",
    *("inference_tokens=1e12", "mix", "compare=group", "predict=1e10", "predict_flops=1e21"),
)
SECTIONS = ("holdout", "predictions", "compare", "settling", "multiverse")  # have figures
POINTS = {
    "power": "E=1.8,A=400,alpha=0.3",
    "chinchilla": "E=1.8,A=480,B=2100,alpha=0.35,beta=0.37",
    "saturating": "floor=0.25,rise=0.6,k=4,L0=2.8",
}
COLUMNS = {"params", "tokens", "unique_tokens", "flops", "loss"}  # of proposed runs


def write_table(path):
    """Two groups of runs at four budgets, five sizes each."""
    rng, rows = np.random.default_rng(0), []
    for group, better in (("adamw", 1.0), ("muon", 0.97)):
        for c in np.geomspace(1e18, 1e20, 4):
            for n in 0.1 * np.sqrt(c) * np.geomspace(1 / 30, 30, 5):
                d = c / 6 / n
                loss = (1.8 + 480 / n**0.35 + 2100 / d**0.37) * better
                loss *= np.exp(0.003 * rng.standard_normal())
                counts = {"params": n, "params_non_embedding": 0.9 * n, "tokens": d, "flops": c}
                counts["unique_tokens"] = d / (1 + len(rows) % 2)
                accuracy = 0.25 + 0.6 / (1 + np.exp(4 * (loss - 2.8)))
                names = {"run": f"r{len(rows)}", "group": group}
                rows.append({**names, **counts, "loss": loss, "accuracy": accuracy})
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def hurried(monkeypatch):
    """Fits of one start and two steps, intervals of one: numbers without meaning, through all of
    the code that handles them."""

    def one_start(name, against="params"):
        law = laws.named_law(name, against)

        def first(values):
            if callable(values):
                return lambda x, y: list(values(x, y))[1:2]
            return tuple(values)[len(values) // 2 :][:1]

        return dataclasses.replace(law, starts={k: first(v) for k, v in law.starts.items()})

    def bracket(profile, center, width, limit):
        ends = center[:, None] + width * np.array([-1.0, 1.0])
        return np.where(np.isfinite(profile(ends)), ends, np.inf * np.array([-1.0, 1.0]))

    run = optimize._Descent.run
    for module in (analysis, multiverse):
        monkeypatch.setattr(module, "named_law", one_start)
    for module in (fit_module, isoflop, envelope):
        monkeypatch.setattr(module, "RESAMPLES", 20)
    monkeypatch.setattr(optimize._Descent, "run", lambda self, steps: run(self, min(steps, 2)))
    monkeypatch.setattr(fit_module, "ROUNDS", 1)
    monkeypatch.setattr(uncertainty, "_bracket_ends", bracket)
    monkeypatch.setattr(multiverse, "OBJECTIVES", multiverse.OBJECTIVES[1:2])
    monkeypatch.setattr(design, "STAGES", 2)
    monkeypatch.setattr(extrapolation, "TRIED", 20)


@pytest.fixture
def outcome(tmp_path, monkeypatch):
    """Runs the command: its document, or the message of the BadInput that it ended in."""
    hurried(monkeypatch)
    table, written, drawn = write_table(tmp_path / "runs.csv"), [], set()
    figures = fit_figures.draw_figures

    def drawn_once(found):
        """The figures are slow: they are made of every kind of document once."""
        document = found.document
        kind = (document["against"], *(name for name in SECTIONS if document.get(name)))
        if kind not in drawn:
            drawn.add(kind)
            assert figures(found)
        return {}

    def write(path, content):
        if path.name == "next.py":
            ast.parse(content)

    def write_json(path, value):
        files.indented(value)  # raises for what is no JSON
        written.append(value)

    monkeypatch.setattr(fit_figures, "draw_figures", drawn_once)
    monkeypatch.setattr(files, "write_atomic", write)
    monkeypatch.setattr(files, "write_json", write_json)

    def run(*flags):
        try:
            assert command.main([f"--runs={table}", f"--out={tmp_path}", *flags]) == 0
        except BadInput as error:
            return str(error)
        return written.pop()

    return run


@pytest.mark.parametrize(
    "law",
    [
        pytest.param(law, marks=() if law in ("envelope", "optima") else pytest.mark.slow)
        for law in ("power", "chinchilla", "saturating", *laws.METHODS)
    ],
)
def test_every_pair_of_flags_works_or_is_rejected(law, outcome):
    point = POINTS.get(law, "E=1.8")
    first = point.partition(",")[0]
    flags = (*FLAGS, f"fix={first}", f"init={point}", f"score={point}", f"prior={first}±0.1")
    crashed, worked = [], 0
    for pair in itertools.combinations(flags, 2):
        if len({flag.partition("=")[0] for flag in pair}) < 2:
            continue
        try:
            found = outcome(f"--law={law}", *(f"--{flag}" for flag in pair))
        except Exception as error:
            crashed.append((pair, f"{type(error).__name__}: {error}"))
            continue
        assert found
        if isinstance(found, dict):
            worked += 1
            for run in found.get("next_runs", {"runs": []})["runs"]:
                assert set(run) <= COLUMNS, pair
    assert not crashed, crashed
    assert worked > {"envelope": 25, "optima": 12}.get(law, 50)


@pytest.mark.parametrize("flag", ["next_runs=1e21", "anytime", "multiverse"])
def test_options_of_one_law_are_rejected_for_several_groups(flag, outcome):
    name = flag.partition("=")[0]
    told = outcome("--law=chinchilla", "--compare=group", f"--{flag}")
    assert told.startswith(f"--{name}: is for one law")
    assert "--where=group==NAME" in told
    section = {"next_runs": "next_runs", "anytime": "settling", "multiverse": "multiverse"}[name]
    assert outcome("--law=chinchilla", "--where=group==muon", f"--{flag}")[section]


@pytest.mark.parametrize(
    ("law", "flags"),
    [
        ("power", ["method=parabola"]),
        ("power", ["method=akima"]),
        ("chinchilla", ["noise=0.01"]),
        ("chinchilla", ["against=tokens"]),
        ("saturating", ["against=params"]),
        ("envelope", ["method=parabola"]),
        ("envelope", ["holdout=largest"]),
        ("optima", ["holdout=largest"]),
        ("optima", ["cluster=group"]),
        ("isoflop", ["cluster=group"]),
        ("chinchilla", ["six_nd"]),
        ("optima", ["six_nd"]),
        ("isoflop", ["against=tokens"]),
        ("isoflop", ["objective=mse"]),
        ("isoflop", ["huber_delta=0.01", "objective=huber_log"]),
        ("chinchilla", ["huber_delta=0.01"]),
        ("chinchilla", ["huber_delta=0.01", "objective=mse"]),
    ],
)
def test_a_flag_that_a_law_does_not_use_is_refused(law, flags, outcome):
    told = outcome(f"--law={law}", *(f"--{flag}" for flag in flags))
    assert isinstance(told, str)
    assert f"--{flags[0].partition('=')[0]}: " in told


@pytest.mark.parametrize(
    ("law", "flags"),
    [
        ("isoflop", ["method=parabola", "noise=0.01", "holdout=largest"]),
        ("envelope", ["cluster=group", "six_nd"]),
        ("isoflop", ["six_nd"]),
        ("power", ["against=tokens", "cluster=group"]),
        ("chinchilla", ["huber_delta=0.01", "objective=huber_log", "holdout=largest"]),
    ],
)
def test_a_flag_that_a_law_uses_is_taken(law, flags, outcome):
    assert isinstance(outcome(f"--law={law}", *(f"--{flag}" for flag in flags)), dict)


ROWS = [{"run": str(i), "params": float(n), "tokens": 20.0 * n, "loss": 1.5 + 9 * n**-0.3,
         "flops": 120.0 * n * n, "group": "ab"[i % 2]}
        for i, n in enumerate(np.geomspace(1e4, 1e6, 8))]  # fmt: skip
ALIKE = [{**row, "group": "a"} for row in ROWS]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"starts": {"alpha": [0.1, math.nan]}}, "--starts=alpha=nan: expected a finite number"),
        ({"starts": {"A": [0.1, -1]}}, "--starts=A=-1: A is positive; expected a number above 0"),
        ({"starts": {"alpha": 0.3}}, r"--starts=alpha=0\.3: expected a list of numbers"),
        ({"starts": {"alpha": []}}, r"--starts=alpha=\[\]: expected a list of numbers"),
        ({"starts": {"alpha": ["x"]}}, r"--starts=alpha=\['x'\]: expected a list of numbers"),
        ({"fix": {"A": [1, 2]}}, r"--fix=A=\[1, 2\]: expected a number"),
        ({"score": {"E": None}}, "--score=E=None: expected a number"),
        ({"predict": 1e6}, r"--predict=1000000\.0: expected a list of numbers"),
        ({"predict_flops": [None]}, r"--predict_flops=\[None\]: expected a list of numbers"),
        ({"bootstrap": 10.5}, r"--bootstrap=10\.5: expected a whole number"),
        ({"noise": "much"}, "--noise='much': expected a number"),
    ],
)
def test_options_of_the_wrong_type_are_reported(options, words):
    with pytest.raises(BadInput, match=words):
        analyze("power", ROWS, options)


def test_starts_and_counts_of_any_kind_of_number_will_do():
    starts = {"alpha": np.array([0.2, 0.3]), "A": (1, 9.0)}
    found = analyze("power", ALIKE, {"starts": starts, "seed": np.int64(3)}).document
    assert found["starts"]["total"] == 4
    assert found["params"]["alpha"] == pytest.approx(0.3, abs=1e-3)
    assert analyze("power", ALIKE, {"starts": {"alpha": [0.1, -1]}}).document["params"] == (
        pytest.approx(found["params"], rel=1e-3)
    )  # alpha may be negative


def test_how_a_prediction_settles_is_reported_of_as_few_runs_as_can_be_fitted():
    section = analyze("power", ALIKE[::2], {}, anytime=True).document["settling"]
    assert [stage["runs"] for stage in section["stages"]] == [4]
    costless = [{k: v for k, v in row.items() if k not in ("flops", "tokens")} for row in ALIKE]
    with pytest.raises(BadInput, match="--anytime: rows without 'flops'"):
        analyze("power", costless, {}, anytime=True)


def test_groups_are_compared_by_what_they_need_for_the_same_loss():
    rows = [{**row, "accuracy": 0.9 - 0.1 * row["loss"]} for row in ROWS]
    with pytest.raises(BadInput, match="--compare: saturating predicts accuracy from loss"):
        analyze("saturating", rows, {}, compare_by="group")
    by_tokens = {"against": "unique_tokens"}
    rows = [{**row, "unique_tokens": row["tokens"]} for row in ROWS]
    found = analyze("power", rows, by_tokens, compare_by="group")
    assert found.document["compare"]["of"] == "unique tokens"
    assert "compare" in fit_figures.draw_figures(found)
