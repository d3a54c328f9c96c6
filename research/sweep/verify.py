"""Predictions put to the test: what the laws of a sweep say of larger runs, and what these measure.
A ladder has rungs, each a multiple of the sweep's largest budget; all are registered before any is
trained (research/runs/ladder.py).
"""

import datetime
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from research import scaling
from research.config import validation
from research.config.loading import validated
from research.config.schema import flatten
from research.errors import BadInput, Preempted
from research.io import files, source
from research.io.humanize import flops_text
from research.models import sizing
from research.runs import ladder, metrics_log, tracking
from research.runs.directory import check_workdir
from research.runs.settings import is_part_of_a_run
from research.runs.table import newest_sweep
from research.scaling import collapse, groups
from research.scaling.compute_optimal import AHEAD, PER_TOKEN
from research.scaling.laws import AUTO
from research.scaling.rungs import Forecaster, make_forecaster
from research.scaling.statistics import number_budgets
from research.sweep.launcher import LaunchOptions, launch_sweep
from research.sweep.points import Outcome, Point, resolve_points
from research.tables import table
from research.training.make_run import make_run

SAME = 0.01  # relative: how near budgets, or ratios, are one rung
FURTHEST = 1e6  # a ratio beyond which no law means anything
FACTS = ("params", "tokens", "flops", "steps", "epochs")


@dataclass(frozen=True)
class Asked:
    """The rungs that are asked for: as ratios to the largest budget of the sweep, or one as a
    budget 6 N D; of a `law`, or of any (None: what no law has registered is predicted by the
    average). `again` registers what was registered before once more, by what the sweep says now."""

    ratios: Sequence[float] = ()
    flops: float | None = None
    law: str | None = None
    again: bool = False


def register(workdir: str | Path, asked: Asked) -> Path | None:
    """Write down what is predicted of the rungs that are asked for and were not registered, in a
    file of its own, which is returned; None where there are no others.

    Raises BadInput where no law can be fitted, or a rung is none of the sweep's.
    """
    workdir = Path(workdir)
    check_workdir(workdir)
    known = ladder.read_registrations(workdir)
    wanted = list(asked.ratios)
    if not (wanted or asked.flops):
        if known and asked.law is None and not asked.again:
            return None
        last = list(known.values())[-1:]
        wanted = [rung["ratio"] for each in last for rung in each["rungs"]] or [AHEAD]
    if not asked.again:
        wanted = [x for x in wanted if not _registered(known, asked.law, "ratio", x)]
        there = asked.flops and _registered(known, asked.law, "budget", asked.flops)
        if not wanted and (there or not asked.flops):
            return None
    forecaster, group, points = fit_laws(workdir, asked.law or AUTO)
    base, notes = choose_config(points, forecaster.rows)
    most = forecaster.largest_budget
    if asked.flops:
        wanted = [asked.flops / most]
        if wanted[0] <= 1:
            raise BadInput(
                f"--flops={asked.flops:g}: expected more than the largest budget of the sweep, "
                f"{flops_text(most)} (6 N D)"
            )
        if wanted[0] > FURTHEST:
            raise BadInput(f"--flops={asked.flops:g}: {wanted[0]:.3g} times the sweep's largest")
    rungs = [_predict_rung(workdir, base, forecaster, ratio) for ratio in sorted(wanted)]
    bundle = _bundle(workdir, forecaster)
    if isinstance(bundle, collapse.Bundle):
        for rung in rungs:
            sizes = rung["params"], rung["tokens"]
            rung["curve"] = bundle.forecast(rung["loss"], rung["run_interval"], *sizes)
        bundle = bundle.section()
    document = {
        **forecaster.describe(),
        "collapse": bundle,
        "group": group,
        "notes": notes,
        "rungs": rungs,
        "line": forecaster.line(1.5 * rungs[-1]["budget"]),
        "code": source.describe(),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    return _write(workdir / ladder.FOLDER, document)


def _bundle(workdir: Path, forecaster: Forecaster) -> collapse.Bundle | dict[str, Any]:
    """The training curves of the runs that the laws were fitted to, or why they forecast none."""
    floor = forecaster.average.best.params.get("E", 0.0)
    try:
        curves = collapse.make_curves(
            forecaster.rows, lambda run: metrics_log.read_records(workdir / "runs" / run)
        )
        return collapse.make_bundle(curves, floor)
    except BadInput as error:
        return {"why": str(error)}


def _registered(
    known: Mapping[str, Mapping[str, Any]], law: str | None, name: str, value: float
) -> bool:
    """Whether a rung was registered, by this law or, where None is asked for, by any."""
    return any(
        abs(rung[name] / value - 1) <= SAME
        for each in known.values()
        if law in (None, each["law"])
        for rung in each["rungs"]
    )


def _write(folder: Path, document: Mapping[str, Any]) -> Path:
    """Write a registration under the first name that is free. Who registers at the same time gets
    the next one."""
    files.make_directory(folder)
    with open(folder / ".lock", "a") as file:
        files.lock(file)
        number = 1
        while (path := folder / ladder.registration_name(number)).exists():
            number += 1
        files.write_json(path, files.digested(document))
    return path


def _predict_rung(
    workdir: Path, base: Mapping[str, Any], forecaster: Forecaster, ratio: float
) -> dict[str, Any]:
    """What is predicted of the nearest run to the optimum of a budget that can be built."""
    budget = ratio * forecaster.largest_budget
    best = forecaster.optimal_size(budget)
    size = make_run(_config(base, best, budget / PER_TOKEN / best)).facts["params"]
    config = _config(base, best, budget / PER_TOKEN / size)
    run = make_run(config)
    facts = {name: run.facts[name] for name in FACTS}
    (point,) = resolve_points([({}, config)], workdir / ladder.FOLDER)
    return {
        "ratio": float(ratio),
        "budget": float(budget),
        "optimal_params": float(best),
        **facts,
        **forecaster.predict(facts["params"], facts["tokens"]),
        "run": run.id,
        "found": point.status,  # "new", unless this run was begun before it was registered here
        "config": config,
    }


def rung_points(workdir: str | Path, asked: Asked) -> list[Point]:
    """The runs of the rungs that are asked for (where no ratio or budget is, all that are
    registered), smallest first. Raises BadInput where the data are not what they were at
    registration."""
    folder = Path(workdir) / ladder.FOLDER
    points = [
        _point(folder, name, rung)
        for name, registration in ladder.read_registrations(workdir).items()
        for rung in registration["rungs"]
        if asked.law in (None, registration["law"]) and _is_asked(rung, asked)
    ]
    points = list({point.run.id: point for point in points}.values())
    return sorted(points, key=lambda point: point.run.facts["flops"])


def train(
    workdir: str | Path,
    points: Sequence[Point],
    stop: Callable[[], bool],
    options: LaunchOptions | None = None,
    stop_off_track: bool = False,
) -> Outcome:
    """Train the runs of rungs, and write WORKDIR/verify/ladder.json. Raises as sweep.launch, and
    with `stop_off_track` Preempted where a run is off the curve that was forecast."""
    folder = Path(workdir) / ladder.FOLDER
    watched = StopOffTrack(folder, points, stop)
    try:
        return launch_sweep(points, folder, watched if stop_off_track else stop, options)
    except Preempted as error:
        raise Preempted(watched.why) if watched.why else error  # noqa: B904, by one and the same
    finally:
        write_ladder(workdir)


class StopOffTrack:
    """Calling it returns whether to stop: because `stop` says so, or a run of the points is above
    its forecast, by LIMIT standard deviations at LOOKS looks in a row; `why` then says which."""

    LOOKS, SECONDS = 3, 5.0

    def __init__(self, folder: Path, points: Sequence[Point], stop: Callable[[], bool]):
        self.runs, self.stop, self.why, self._next = folder / "runs", stop, "", 0.0
        self.steps = {point.run.id: point.run.facts["steps"] for point in points if point.pending}
        self.forecasts = ladder.read_forecasts(folder)
        self.looks: dict[str, list[float]] = {}

    def __call__(self) -> bool:
        if not self.why and time.monotonic() >= self._next:
            self._next = time.monotonic() + self.SECONDS
            for run, steps in self.steps.items():
                self._look(run, steps)
        return bool(self.why) or self.stop()

    def _look(self, run: str, steps: int) -> None:
        records = metrics_log.read_tail(self.runs / run)
        found = tracking.track(self.forecasts.get(run), records, steps)
        if not (found and found.off and found.sds > 0):
            self.looks.pop(run, None)
            return
        seen = self.looks.setdefault(run, [])
        seen += [] if found.share in seen else [found.share]
        if len(seen) >= self.LOOKS:
            self.why = f"run {run} is {found}; launch again without --stop_off_track to go on"


def _is_asked(rung: Mapping[str, Any], asked: Asked) -> bool:
    if asked.flops:
        return abs(rung["budget"] / asked.flops - 1) <= SAME
    return not asked.ratios or any(abs(rung["ratio"] / x - 1) <= SAME for x in asked.ratios)


def _point(folder: Path, name: str, rung: Mapping[str, Any]) -> Point:
    (point,) = resolve_points([({}, validated(dict(rung["config"])))], folder)
    if point.run.id != rung["run"]:
        raise BadInput(
            f"{folder / name}: the run of {rung['ratio']:g} times was registered as {rung['run']} "
            f"and would be {point.run.id} now: the data changed since; bring them back, or "
            "register once more with --new_registration"
        )
    return point


def write_ladder(workdir: str | Path) -> list[dict[str, Any]]:
    """Write WORKDIR/verify/ladder.json; returns its rungs."""
    rungs = ladder.read_ladder(workdir)
    files.write_json(Path(workdir) / ladder.FOLDER / "ladder.json", {"rungs": rungs})
    return rungs


def fit_laws(workdir: str | Path, law: str) -> tuple[Forecaster, str, list[dict[str, Any]]]:
    """The laws of the finished runs of the sweep that are comparable with its first point, the
    name of their group ("" where all are), and its points. Raises BadInput if there are too few."""
    rows = table.read_runs(workdir)
    if not any(row["status"] == "done" for row in rows):
        raise BadInput(
            f"--runs={workdir}: none of its {len(rows)} runs is finished; launch it again"
        )
    parts = groups.split(rows, scaling.Options())
    points = _newest_sweep(Path(workdir))["points"]
    of = {row["run"]: name for name, part in parts.items() for row in part}
    name = of.get(points[0]["run"], next(iter(parts)))
    own = [point for point in points if of.get(point["run"]) == name]
    return make_forecaster(law, parts[name]), name, own or points[:1]


def choose_config(
    points: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], list[str]]:
    """The config of a sweep that its rungs continue, but for size and length, and what there is to
    say of the choice. It is that of the first of the `points`; where those of the `rows` differ in
    other settings, the run of lowest loss at the largest budget has it."""
    configs = {point["run"]: flatten(point["config"]) for point in points}
    varied = [
        name
        for name in dict.fromkeys(name for config in configs.values() for name in config)
        if _is_kept(name, points[0]["config"])
        and len({repr(config.get(name)) for config in configs.values()}) > 1
    ]
    fitted = [row for row in rows if row["run"] in configs]
    if not (varied and fitted):
        return points[0]["config"], []
    budgets = number_budgets([row["params"] * row["tokens"] for row in fitted])
    of_most = [row for row, n in zip(fitted, budgets, strict=True) if n == max(budgets)]
    best = min(of_most, key=lambda row: row["loss"])["run"]
    settings = ", ".join(f"{name} = {configs[best].get(name)}" for name in varied)
    why = f"as run {best} of the largest budget has, whose loss is the lowest"
    return (
        next(point["config"] for point in points if point["run"] == best),
        [f"the runs of the sweep differ in {', '.join(varied)}; the rungs have {settings}, {why}"],
    )


def _is_kept(name: str, config: Mapping[str, Any]) -> bool:
    """Whether a rung has this key of the sweep's config: it decides what a run means, and is
    neither size nor length."""
    section, _, key = name.partition(".")
    if section == "model":
        return key in sizing.without_sized(config["model"]["name"], config["model"])
    others = ("size", "seed", "name", "horizon", "eval")
    return section not in others and name != "data.seed" and is_part_of_a_run(name)


def _config(base: Mapping[str, Any], size: float, tokens: float) -> dict:
    """The config at another size and length."""
    changes = {"size": size, "horizon.unit": "tokens", "horizon.amount": float(tokens)}
    config, problems = validation.override(dict(base), changes)
    if problems:
        raise BadInput(*problems)
    return validated(config)


def _newest_sweep(workdir: Path) -> dict[str, Any]:
    if (path := newest_sweep(workdir)) is None:
        raise BadInput(f"--runs={workdir}: no sweep was launched there; expected its --workdir")
    return files.read_json(path, limit=1 << 30)
