"""A prediction put to the test: what the law of a sweep says of a larger run, and what that run
then measures.

WORKDIR/verify/prediction.json   written before the run is trained, and not changed afterwards
WORKDIR/verify/verify.json       the same with what was measured
WORKDIR/verify/runs/<id>/        the run
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from research import scaling
from research.config import validation
from research.config.loading import validated
from research.errors import BadInput
from research.io import files
from research.runs.table import read_row
from research.scaling import Fit, compute_optimal, groups
from research.scaling.fit import finite_ends
from research.sweep.launcher import launch_sweep
from research.sweep.points import launched_with, resolve_points
from research.tables import table
from research.training.make_run import make_run

FACTOR = 10.0  # times the largest budget of the sweep
MISSED = 0.01  # relative: how far another prediction may be from what is asked for, in FLOPs


def predict(workdir: str | Path, flops: float | None) -> tuple[dict[str, Any], dict]:
    """(the prediction of a run of `flops` FLOPs 6 N D, by default FACTOR times the largest of the
    sweep in `workdir`, at the size that is best for it; the config of that run). It is written
    once, and afterwards read.

    Raises BadInput where no law can be fitted, or another prediction was made before.
    """
    path = Path(workdir) / "verify" / "prediction.json"
    if path.exists():
        prediction = files.read_json(path)
        if flops and abs(prediction["budget"] / flops - 1) > MISSED:
            raise BadInput(
                f"--flops={flops:g}: {path} holds a prediction for {prediction['budget']:.4g}; "
                f"remove {path.parent} to make another"
            )
        return prediction, prediction["config"]
    fit, group = law(workdir)
    budget = flops or FACTOR * compute_optimal.largest_budget(fit.parts.fitted)
    best = compute_optimal.optimal_params(fit.law, fit.best[None], [budget])[0, 0]
    if compute_optimal.vary_together(fit.parts.fitted) or not 0 < best < float("inf"):
        raise BadInput(f"--runs={workdir}: its law has no optimal size at {budget:g} FLOPs")
    config = _config(Path(workdir), float(best), budget / compute_optimal.PER_TOKEN / best)
    size = make_run(config).facts["params"]  # the nearest that can be built
    config = _config(Path(workdir), float(best), budget / compute_optimal.PER_TOKEN / size)
    run = make_run(config)
    facts = {k: run.facts[k] for k in ("params", "tokens", "flops", "steps", "epochs")}
    point = {name: [float(facts[name])] for name in ("params", "tokens")}
    loss, of_law, of_run = (part[0] for part in fit.predict(point))
    prediction = {
        "budget": float(budget),
        "optimal_params": float(best),
        **facts,
        "loss": float(loss),
        "interval": finite_ends(of_law),
        "run_interval": finite_ends(of_run),
        "unit": scaling.loss_unit(fit.parts.usable),
        "formula": fit.law.formula,
        "law": fit.params,
        "group": group,
        "n_points": len(fit.parts.fitted),
        "run": run.id,
        "config": config,
    }
    files.make_directory(path.parent)
    files.write_json(path, prediction)
    return prediction, config


def measure(
    workdir: str | Path,
    prediction: Mapping[str, Any],
    config: dict,
    stop: Callable[[], bool],
    accept_changes: bool = False,
    labels: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Train the run of a prediction, unless that was done, and write what it measured beside it;
    with `accept_changes` also where other code began it.
    Raises as sweep.launch, and BadInput if the run did not come to its end."""
    folder = Path(workdir) / "verify"
    points = resolve_points([({}, config)], folder)
    points = launched_with(points, accept_changes, labels)
    outcome = launch_sweep(points, folder, stop)
    if outcome.missing:
        (reason,) = outcome.missing.values()
        raise BadInput(f"{folder}: run {prediction['run']} is not done: {reason}")
    row = read_row(folder / "runs" / points[0].run.id)
    low, high = prediction["run_interval"]
    above = low is None or low <= row["loss"]
    measurement = {
        **prediction,
        "measured": row["loss"],
        "error": prediction["loss"] / row["loss"] - 1,
        "covered": above and (high is None or row["loss"] <= high),
        "seconds": row["seconds"],
    }
    files.write_json(folder / "verify.json", measurement)
    return measurement


def law(workdir: str | Path) -> tuple[Fit, str]:
    """L(N, D) of the finished runs of the sweep that are comparable with its first point, and the
    name of their group ("" where all are). Raises BadInput if there are too few."""
    parts = groups.split(table.read_runs(workdir), scaling.Options())
    first = _newest_sweep(Path(workdir))["points"][0]["run"] if len(parts) > 1 else None
    names = [name for name, part in parts.items() if any(row["run"] == first for row in part)]
    name = names[0] if names else next(iter(parts))
    fit = scaling.analyze("chinchilla", parts[name], {}, checks_too=False).fit
    assert fit
    return fit, name


def _config(workdir: Path, size: float, tokens: float) -> dict:
    """The config of the newest sweep of `workdir`, at another size and length."""
    config = _newest_sweep(workdir)["points"][0]["config"]
    changes = {"size": size, "horizon.unit": "tokens", "horizon.amount": float(tokens)}
    config, problems = validation.override(config, changes)
    if problems:
        raise BadInput(*problems)
    return validated(config)


def _newest_sweep(workdir: Path) -> dict[str, Any]:
    sweeps = sorted((workdir / "sweeps").glob("*.json"), key=lambda path: path.stat().st_mtime)
    if not sweeps:
        raise BadInput(f"--runs={workdir}: no sweep was launched there; expected its --workdir")
    return files.read_json(sweeps[-1], limit=1 << 30)
