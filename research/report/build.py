"""The report of a sweep: one self-contained page, its figures, and the fits.

Reads records only, so any machine can draw it again.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from research import scaling
from research.errors import BadInput
from research.io import files
from research.report import (
    answer,
    decision_figures,
    fit_figures,
    html,
    ladder_text,
    methods,
    style,
    sweep_figures,
    text,
    transfer_text,
)
from research.report.warning_groups import grouped_warnings
from research.runs import metrics_log, scores
from research.runs.directory import check_workdir
from research.runs.ladder import FOLDER, read_ladder, read_registrations
from research.runs.table import nearby_workdir, others_note, read_table, split_by_sweep
from research.scaling import collapse, downstream
from research.scaling.compute_optimal import PER_TOKEN
from research.scaling.fit_document import write_document
from research.tables import replicates
from research.tables.comparable import Grouping, group_rows
from research.tables.where import match_where

Row = dict[str, Any]


def write_report(
    workdir: str | Path,
    against: str | None = None,
    every_way: bool = False,
    mix: bool = False,
    all_runs: bool = False,
    where: str | None = None,
    out: str | Path | None = None,
    inference_tokens: float | None = None,
) -> dict[str, Any]:
    """Fit and draw what is in `workdir`, and write report.html, fit.json and figures/ there, or in
    `out`, where `workdir` is only read.

    Runs that are not comparable (see tables.comparable) are groups, with a law and a
    fit-GROUP.json each, unless `mix`. Runs that are no points of the sweep as it was launched last
    are left out, unless `all_runs`, and those that do not meet `where`. `against` is by default the
    first column in which the runs differ. With `every_way`, the law of a single group is fitted
    again under every convention. Optima also count `inference_tokens`, where that is given.
    Returns {"rows", "against", "fits": {group: {"rows", "document" (None if there are too few
    runs), "why" not}}, "cards", "files", "methods": {group: Methods}, "surfaces": {group: {law:
    analysis}}, "compared", "notes", and what _said adds}. Raises BadInput when `workdir` holds no
    runs.
    """
    workdir = Path(workdir)
    out = files.make_directory(out) if out else workdir
    check_workdir(out)
    rows, notes = _runs_of_sweep(workdir, all_runs, where)
    against = against or text.varying_column(rows)
    rows, grouping = _group(rows)
    groups = {"": rows} if mix and grouping.several else text.rows_by_group(rows)
    every = methods.fit_methods(groups, mix, inference_tokens, every_way)
    surfaces = {name: found.sections for name, found in every.items()}
    fits = {name: _fit_group(m, against, mix, surfaces[name]) for name, m in groups.items()}
    compared = _compare_groups(fits, surfaces, against) if grouping.measured_alike else None
    if len(groups) > 1:
        notes.append(told_of_groups(len(groups), grouping, bool(compared)))
    records = {row["run"]: metrics_log.read_records(workdir / "runs" / row["run"]) for row in rows}
    bundle = _bundle(fits, records)
    result = {"rows": rows, "against": against, "fits": fits, "surfaces": surfaces}
    result |= {"compared": compared, "methods": every, "collapse": bundle and bundle.section()}
    result |= {"registrations": read_registrations(workdir), "rungs": read_ladder(workdir)}
    result |= {"transfer": _transfer(workdir, notes), "cards": _cards(workdir)}
    result["downstream"] = {name: _scores_of(members) for name, members in groups.items()}
    result["notes"] = [*notes, *grouping.notes]
    figures = _figures(workdir, result, records, bundle)
    if every_way and len(fits) == 1 and (document := next(iter(fits.values()))["document"]):
        (group, found), *_ = every.items()
        figures |= _multiverse_figure(mix, document, found, groups[group])
    drawings = {name: style.render_figure(figure) for name, figure in figures.items()}
    for group, found in every.items():
        for law, drawn in found.drawings.items():
            stem = html.figure_name(every, group, law)
            drawings |= {f"{stem}_{kind}": drawing for kind, drawing in drawn.items()}
    result["files"] = written = _write_parts(out, result, drawings)
    result |= _said(result)
    files.write_atomic(written["report"], html.render_page(result, drawings))
    return result


def _figures(
    workdir: Path,
    result: Mapping[str, Any],
    records: Mapping[str, list[Row]],
    bundle: collapse.Bundle | None,
) -> dict[str, Any]:
    """The figures of the page by name, but for those of laws and methods."""
    out = _sweep_figures(result["rows"], records, result["fits"], result["against"])
    if bundle:
        out["collapse"] = sweep_figures.collapse_curves(bundle)
    if compared := result["compared"]:
        out["compare"] = fit_figures.draw_figures(compared, "compare")["compare"]
    if registrations := result["registrations"]:
        name, newest = [*registrations.items()][-1]
        out["ladder"] = decision_figures.ladder(name, newest, result["rungs"])
        out |= _forecast_figure(workdir, registrations)
    transfer = result["transfer"].figures
    return out | {f"transfer_{name}": figure for name, figure in transfer.items()}


def _write_parts(
    out: Path, result: Mapping[str, Any], drawings: Mapping[str, style.Drawing]
) -> dict[str, Path]:
    """Write the figures and the documents of all fits; their paths by name, and that of the page,
    which is yet to be written."""
    written = {"report": out / "report.html"}
    for name, drawing in drawings.items():
        written[f"{name}.png"], written[f"{name}.svg"] = drawing.save(out / "figures" / name)
    for name, fit in result["fits"].items():
        if fit["document"]:
            stem = "fit" if len(result["fits"]) == 1 else f"fit-{html.slug(name)}"
            written[stem] = write_document(out, fit["document"], stem)
    others = [("compare", result["compared"])] if result["compared"] else []
    for group, found in result["methods"].items():
        for law, analysis in found.analyses.items():
            if law != "parabola":  # that of Akima has both
                others.append((html.figure_name(result["methods"], group, law), analysis))
    for name, analysis in others:
        written[f"fit-{name}"] = write_document(out, analysis.document, f"fit-{name}")
    return written


def _cards(workdir: Path) -> list[dict[str, Any]]:
    places = sorted((workdir / "data").glob("*.json"))
    return [files.read_json(place, follow=False) for place in places]


def _runs_of_sweep(workdir: Path, all_runs: bool, where: str | None) -> tuple[list[Row], list[str]]:
    """The rows of the runs to report, and what there is to say of others."""
    rows, others = read_table(workdir), []
    if not all_runs:
        rows, others = split_by_sweep(workdir, rows)
    notes = [others_note(others)] if others else []
    if not rows:
        raise BadInput(f"--runs={workdir}: no runs yet{nearby_workdir(workdir)}", *notes)
    if where:
        met = match_where(rows, where)
        notes.append(f"--where={where}: {int(met.sum())} of {len(rows)} runs")
        rows = [row for row, keep in zip(rows, met, strict=True) if keep]
        if not rows:
            raise BadInput(f"--where={where}: no run meets it")
    return rows, notes


def _group(rows: Sequence[Row]) -> tuple[list[Row], Grouping]:
    """The rows, where they are not comparable with their groups' labels in the column `group`."""
    grouping = group_rows(rows, [row["status"] == "done" for row in rows])
    if not grouping.several:
        return list(rows), grouping
    return [{**r, "group": label} for r, label in zip(rows, grouping.labels)], grouping


def told_of_groups(count: int, grouping: Grouping, compared: bool) -> str:
    """In which columns groups differ, and what else could be asked."""
    words = f"the runs are {count} groups that share no law, by {grouping.words()}"
    if compared:
        return words
    if not grouping.measured_alike:
        return f"{words}: their losses do not measure the same thing, so they are not compared"
    return f"{words}: isoflop fit --compare={grouping.columns[0]} compares them"


def _fit_group(
    rows: Sequence[Row], against: str, mix: bool, surfaces: Mapping[str, scaling.Analysis]
) -> dict[str, Any]:
    if law := surfaces.get("chinchilla"):  # a law of one column would not tell budgets apart
        return {"rows": rows, "analysis": None, "document": law.document, "why": ""}
    done = [row for row in rows if row["status"] == "done" and row.get(against)]
    options = {"against": against, "mix": mix, "best_of": replicates.best_of(done, (against,))}
    why = ""
    for holdout in ("largest", None):  # of four sizes all are needed
        try:
            analysis = scaling.analyze("power", rows, {**options, "holdout": holdout})
        except BadInput as error:
            why = str(error)
        else:
            return {"rows": rows, "analysis": analysis, "document": analysis.document, "why": ""}
    sizes, lengths = (len({row.get(name) for row in done}) for name in ("params", "tokens"))
    if 1 < min(sizes, lengths) < methods.DISTINCT:
        why += f". L(N, D) needs {methods.DISTINCT} sizes and lengths: there are {sizes}, {lengths}"
    return {"rows": rows, "analysis": None, "document": None, "why": why}


def _scores_of(rows: Sequence[Row]) -> dict[str, Any]:
    """The laws of each column of scores: what downstream.fit_downstream finds by
    budgets 6 N D, else why not."""
    done = [r for r in rows if r["status"] == "done" and r.get("params") and r.get("tokens")]
    done = [{**row, "flops": PER_TOKEN * row["params"] * row["tokens"]} for row in done]
    out: dict[str, Any] = {}
    for column in scores.shown(done):
        try:
            out[column] = downstream.fit_downstream(done, scaling.Options(), column)
        except BadInput as error:
            out[column] = str(error)
    return out


def _compare_groups(
    fits: Mapping[str, Mapping], surfaces: Mapping[str, Mapping], against: str
) -> scaling.Analysis | None:
    """One law for all groups with a multiplier each, where every group has a law of its own; of
    what was tuned at a size and length the best, since the others say nothing of the groups."""
    if len(fits) < 2 or not all(fit["document"] for fit in fits.values()):
        return None
    both = all("chinchilla" in of_group for of_group in surfaces.values())
    done = [row for fit in fits.values() for row in fit["rows"] if row["status"] == "done"]
    law, options = ("chinchilla", {}) if both else ("power", {"against": against})
    columns = ("params", "tokens") if both else (against,)
    try:
        out = scaling.analyze(law, done, {**options, "best_of": "cell"}, compare_by="group")
    except BadInput:
        return None  # too few runs for so many parameters
    if tuned := replicates.told_once(done, replicates.varied_within(done, columns)):
        words = f"each group is compared at its best {', '.join(tuned)} for each size and length"
        out.document["compare"]["words"].append(words)
    else:
        out.document["compare"]["words"] += replicates.untuned_warning(done, columns, "group")
    return out


def _said(result: Mapping[str, Any]) -> dict[str, Any]:
    """What page and terminal say alike: "answers", "tables" of methods, the same as
    "methods_text", and their "agreement" by group; and "warnings" by what to do about them."""
    fits, every = result["fits"], result["methods"]
    newest = [*result["registrations"].values()][-1:]
    of_rungs = newest[0]["group"] if newest and newest[0]["group"] in fits else next(iter(fits))
    verdict = ladder_text.verdict(result["rungs"])
    answers, tables, methods_text, agreement = {}, {}, {}, {}
    for name, fit in fits.items():
        missing = sum(row["status"] != "done" for row in fit["rows"])
        answers[name] = answer.answer_sentences(
            every[name],
            fit["document"],
            verdict if name == of_rungs else "",
            (missing, len(fit["rows"])),
            fit["why"],
        )
        if body := answer.methods_table(every[name]):
            tables[name] = [[*answer.HEADINGS], *body]
            agreement[name] = answer.agreement_sentences(every[name])
            methods_text[name] = "\n".join([answer.methods_text(every[name]), *agreement[name]])
    warnings = grouped_warnings(result["rows"], fits, every, result["notes"])
    out = {"answers": answers, "tables": tables, "agreement": agreement, "warnings": warnings}
    return out | {"methods_text": methods_text}


def _transfer(workdir: Path, notes: list[str]) -> transfer_text.Stages:
    """The check of transfer at the workdir; none, and a note, where it cannot be read."""
    try:
        return transfer_text.stages(workdir)
    except BadInput as error:
        notes.append(f"no check of transfer is shown: {error.problems[0]}")
        return transfer_text.Stages()


def _multiverse_figure(
    mix: bool, document: dict[str, Any], found: methods.Methods, rows: Sequence[Row]
) -> dict[str, Any]:
    """The figure of the multiverse, which the fit's document then holds; {} without one."""
    multiverse = found.multiverse
    if "chinchilla" not in found.analyses:
        done = [row for row in rows if row["status"] == "done"]
        options = {"against": document["against"], "mix": mix}
        options |= {name: document["options"][name] for name in ("holdout", "best_of")}
        multiverse = methods.refit_every_way(document["law"], done, options)
    if not multiverse:
        return {}
    document["multiverse"] = multiverse
    return {"multiverse": decision_figures.multiverse_spread(document)}


def _bundle(
    fits: Mapping[str, Mapping], records: Mapping[str, list[Row]]
) -> collapse.Bundle | None:
    """The normalized training curves of a sweep whose runs share a law and a schedule; None where
    they do not, or the records are too few."""
    (fit, *others) = fits.values()
    if others or not fit["document"]:
        return None
    try:
        curves = collapse.make_curves(fit["rows"], lambda run: records[run])
        return collapse.make_bundle(curves, fit["document"]["params"].get("E", 0.0))
    except BadInput:
        return None


def _forecast_figure(
    workdir: Path, registrations: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """The figure of curves that were forecast, of the runs that have begun; {} without any."""
    rungs = [rung for each in registrations.values() for rung in each["rungs"] if rung.get("curve")]
    runs = workdir / FOLDER / "runs"
    records = {rung["run"]: metrics_log.read_records(runs / rung["run"]) for rung in rungs}
    rungs = sorted((r for r in rungs if records[r["run"]]), key=lambda rung: rung["ratio"])
    if not rungs:
        return {}
    unit = next(iter(registrations.values()))["unit"]
    return {"forecasts": sweep_figures.forecast_curves(rungs, records, unit)}


def _sweep_figures(
    rows: Sequence[Row],
    records: Mapping[str, list[Row]],
    fits: Mapping[str, Mapping],
    against: str,
) -> dict[str, Any]:
    out: dict[str, Any] = {}
    done = [row for row in rows if row["status"] == "done"]
    (first, *others), unit = fits.values(), scaling.loss_unit(rows)
    if done and others:
        out["loss"] = sweep_figures.group_curves(fits, against, unit)
    elif done and (first["analysis"] or not first["document"]):
        rates = {row.get("lr") for row in done}
        tuned = not first["document"] and replicates.best_of(done, (against,)) and len(rates) > 1
        column = "lr" if tuned else against
        out["loss"] = fit_figures.loss_curve(done, column, unit, first["analysis"])
    for metric in text.page_metrics(done) if len(done) > 1 else ():
        name = metric.name
        series = {n: text.score_statistics(f["rows"], against, name) for n, f in fits.items()}
        if any(series.values()):
            label = f"held-out {style.plain_label(metric.axis or metric.title)}"
            budgets = [] if others else text.score_budgets(first["rows"], against, name)
            figure = sweep_figures.score_curves(series, against, label, budgets)
            out[text.figure_name(metric)] = figure
    if best := html.best_classifier(done):
        out["confusion"] = sweep_figures.confusion_matrix(best["confusion"], best["class_names"])
    curves = [(row, records[row["run"]]) for row in rows if records[row["run"]]]
    if curves:
        out["curves"] = sweep_figures.learning_curves(curves, unit, against)
        for metric in text.set_losses(rows):
            measured = [m for _, records in curves for m in records if metric.name in m]
            if any(m[metric.name] != m["loss"] for m in measured):  # else it is the headline
                figure = sweep_figures.learning_curves(curves, unit, against, metric.name)
                out[text.figure_name(metric, "curves")] = figure
    if first["analysis"] and not others:
        out["residuals"] = fit_figures.residual_panels(first["analysis"].fit)
    return out
