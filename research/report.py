"""The report of a sweep: one self-contained page, its figures, the fit, and a summary as text.

Reads records only, so any machine can draw it again.
"""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from research import files, plots, records, scaling
from research.errors import BadInput
from research.plots import quantity

Row = Mapping[str, Any]

CSS = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff; margin: 0 auto;
       max-width: 66rem; padding: 1.5rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .5rem; border-bottom: 1px solid #ddd; }
.lead { font-size: 1.15rem; }
.warn { background: #fff4e5; border-left: 4px solid #d55e00; padding: .4rem .8rem;
        margin: .3rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .85rem; }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #eee;
         white-space: nowrap; }
th { border-bottom: 2px solid #999; }
td.text, th.text { text-align: left; }
svg { max-width: 100%; height: auto; }
code, pre { background: #f5f5f5; font-size: .85rem; }
pre { padding: .6rem; overflow-x: auto; white-space: pre-wrap; }
"""
OBJECTIVES = {
    "mse_log": "least squares of the log loss",
    "mse": "least squares of the loss",
    "huber_log": "Huber's loss of the log loss",
}
COLUMNS = {
    "params": "parameters",
    "params_non_embedding": "without embedding, head",
    "tokens": "tokens",
    "flops": "FLOPs",
    "lr": "learning rate",
    "seed": "seed",
    "loss": "loss",
    "bits_per_byte": "bits/byte",
    "train_loss": "training loss",
    "seconds": "seconds",
}


def write(workdir: str | Path, against: str = "params") -> dict[str, Any]:
    """Fit and draw what is in `workdir`, and write report.html, fit.json and figures/.

    Returns {"rows", "fit" (None if there are too few runs), "why" not, "files"}. Raises BadInput
    when `workdir` holds no runs.
    """
    workdir = Path(workdir)
    rows = records.table(workdir)
    if not rows:
        raise BadInput(f"--runs={workdir}: no runs yet")
    document, why, predictor = None, "", None
    try:
        document = scaling.fit("power", rows, against=against, holdout="largest")
        predictor = scaling.predictor(rows, document)
    except BadInput as error:
        why = str(error)
    figures = _figures(workdir, rows, document, predictor)
    written = {"report": workdir / "report.html"}
    for name, figure in figures.items():
        written[f"{name}.png"], written[f"{name}.svg"] = plots.save(
            figure, workdir / "figures" / name
        )
    if document:
        files.write_json(workdir / "fit.json", document)
        written["fit"] = workdir / "fit.json"
    cards = [files.read_json(p) for p in sorted((workdir / "data").glob("*.json"))]
    svgs = {name: written[f"{name}.svg"].read_text() for name in figures}
    files.write_atomic(written["report"], page(rows, document, why, cards, svgs))
    return {"rows": rows, "fit": document, "why": why, "files": written}


def headline(document: Mapping[str, Any] | None) -> str:
    """The result in a sentence: prediction against measurement of the largest size."""
    if not document or not document["holdout"]:
        return "Too few finished runs to fit a law and check it."
    row, count = document["holdout"]["rows"][-1], document["n_points"]
    low, high = (_end(x, ".3f") for x in row["run_interval"])
    verdict = "inside" if row["covered"] else "outside"
    return (
        f"From {count} smaller runs, the loss at {quantity(row[document['against']])} parameters "
        f"was predicted as {row['loss']:.3f} (95 % interval {low} to {high}); measured: "
        f"{row['measured']:.3f}, {verdict} the interval, {abs(row['error']):.1%} off."
    )


def _end(value: float | None, spec: str = ".3g") -> str:
    """The end of an interval; None is one that the data leave open."""
    return "open" if value is None else format(value, spec)


def text_summary(result: Mapping[str, Any]) -> str:
    """The table, the law and the verdict for a terminal, and where the files are."""
    lines = ["", f"{'params':>12} {'tokens':>10} {'FLOPs':>9} {'seed':>4} {'loss':>8}  status"]
    for row in result["rows"]:
        loss = f"{row['loss']:.4f}" if row.get("loss") is not None else "-"
        lines.append(
            f"{row.get('params', 0):>12,} {quantity(row.get('tokens', 0)):>10} "
            f"{quantity(row.get('flops', 0)):>9} {row.get('seed', ''):>4} {loss:>8}  "
            + row["status"]
        )
    lines += ["", fit_summary(result["fit"]) if result["fit"] else f"no law: {result['why']}"]
    lines += [
        "",
        *(str(result["files"][name]) for name in ("report", "fit") if name in result["files"]),
    ]
    lines += [str(p) for name, p in result["files"].items() if name.endswith(".png")]
    return "\n".join(lines)


def fit_summary(document: Mapping[str, Any]) -> str:
    """A fit as text: the law, the fall of the loss, prediction against measurement, warnings."""
    parts = []
    for name, value in document["params"].items():
        low, high = document["intervals"][name]
        parts.append(f"{name} = {value:.4g} ({_end(low)} to {_end(high)})")
    lines = [f"{document['formula']}: {', '.join(parts)}; 95 % by {document['method']}"]
    if fall := document["fall"]:
        sd = document["seed_noise"]["sd"]
        lines.append(
            f"the loss falls by {fall['nats']:.3f} nats from the smallest to the largest model, "
            f"{fall['in_seed_sd']:.0f} standard deviations of a seed ({sd:.3f})"
        )
    for row in document["predictions"]:
        low, high = (_end(x, ".4f") for x in row["interval"])
        at = quantity(row[document["against"]])
        lines.append(f"predicted at {at}: {row['loss']:.4f} (law: {low} to {high})")
    if document["holdout"]:
        lines.append(headline(document))
    return "\n".join([*lines, *(f"warning: {text}" for text in document["warnings"])])


def _figures(
    workdir: Path, rows: Sequence[Row], document: Mapping[str, Any] | None, predictor: Any
) -> dict[str, Any]:
    out: dict[str, Any] = {}
    if any(row["status"] == "done" for row in rows):
        out["loss"] = plots.loss_against(rows, document, predictor)
    curves = [(row, records.read_metrics(workdir / "runs" / row["run"])) for row in rows]
    curves = [(row, metrics) for row, metrics in curves if metrics]
    if curves:
        out["curves"] = plots.learning_curves(curves)
    if document:
        out["residuals"] = plots.residuals(rows, document, predictor)
    return out


def page(
    rows: Sequence[Row],
    document: Mapping[str, Any] | None,
    why: str,
    cards: Sequence[Mapping[str, Any]],
    svgs: Mapping[str, str],
) -> str:
    """The whole page. All that comes from records is escaped."""
    name = str(rows[0].get("name") or "sweep")
    parts = [f"<h1>{_e(name)}</h1>", f'<p class="lead">{_e(headline(document))}</p>']
    parts += [f'<p class="warn">{_e(w)}</p>' for w in _warnings(rows, document, why)]
    if "loss" in svgs:
        parts += ["<h2>Loss against size</h2>", _svg(svgs["loss"])]
    if document:
        parts += ["<h2>The law</h2>", _fit_table(document)]
    parts += ["<h2>Runs</h2>", _runs_table(rows)]
    if "curves" in svgs:
        parts += ["<h2>Learning curves</h2>", _svg(svgs["curves"])]
    if "residuals" in svgs:
        parts += ["<h2>Residuals</h2>", _svg(svgs["residuals"])]
    parts += ["<h2>Data</h2>", *(_card(card) for card in cards)]
    parts += ["<h2>How it was made</h2>", _made(rows)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_e(name)}</title><style>{CSS}</style></head><body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _warnings(rows: Sequence[Row], document: Mapping[str, Any] | None, why: str) -> list[str]:
    out = [f"No law was fitted: {why}"] if why else []
    for row in rows:
        if row["status"] != "done":
            out.append(f"Run {row['run']} is {row['status']}. {row.get('reason', '')}")
    out += document["warnings"] if document else []
    repeated = [row for row in rows if row.get("epochs", 0) > 1]
    if repeated:
        out.append(f"{len(repeated)} runs saw more tokens than the corpus has: data were repeated")
    return out


def _fit_table(document: Mapping[str, Any]) -> str:
    head = ["", "value", "95 % interval", "standard error", "identified?"]
    body = []
    for name, value in document["params"].items():
        low, high = document["intervals"][name]
        error = document["standard_errors"][name]
        body.append(
            [
                name,
                f"{value:.4g}",
                f"{_end(low)} to {_end(high)}",
                "open" if error is None else f"{error:.2g}",
                document["identifiability"][name]["flag"],
            ]
        )
    noise = document["seed_noise"]
    seeds = ""
    if noise:
        seeds = (
            f" The seed's standard deviation is {noise['sd']:.3g} nats "
            f"({noise['degrees_of_freedom']} degrees of freedom); from the smallest to the largest "
            f"size the loss falls by {document['fall']['nats']:.3g} nats, "
            f"{document['fall']['in_seed_sd']:.0f} of it."
        )
    agree, certificate = document["starts"], document["certificate"]
    return (
        f"<p>{_e(document['formula'])}, fitted to {document['n_points']} runs below the held-out "
        f"size by {_e(OBJECTIVES[document['options']['objective']])}; intervals by "
        f"{_e(document['method'])}. "
        f"{agree['agree_fraction']:.0%} of {agree['total']} starts reach this minimum; gradient "
        f"norm {certificate['gradient_norm']:.1g}.{seeds}</p>" + _table(head, body)
    )


def _runs_table(rows: Sequence[Row]) -> str:
    shown = {k: v for k, v in COLUMNS.items() if any(row.get(k) is not None for row in rows)}
    head = ["run", "status", *shown.values()]
    body = [[row["run"], row["status"], *(_cell(k, row.get(k)) for k in shown)] for row in rows]
    convention = next((row["flops_convention"] for row in rows if "flops_convention" in row), "")
    words = {
        "exact_full": "FLOPs count every dot product, forward and backward, with the head and the "
        "full attention map."
    }
    return _table(head, body, text=2) + f"<p>{_e(words.get(convention, convention))}</p>"


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "–"
    if name in ("loss", "train_loss", "bits_per_byte"):
        return f"{value:.4f}"
    if name in ("flops", "lr"):
        return f"{value:.3g}"
    if name == "seconds":
        return f"{value:.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _card(card: Mapping[str, Any]) -> str:
    body = [
        ["source", str(card.get("source"))],
        ["training tokens, unique", f"{card.get('train_tokens', 0):,}"],
        ["held-out tokens", f"{card.get('heldout_tokens', 0):,}"],
        [
            f"held-out {card.get('overlap_length')}-grams that occur in training",
            f"{card.get('overlap', float('nan')):.1%}",
        ],
        ["tokenizer", str(card.get("tokenizer"))],
        ["SHA-256", str(card.get("digest"))],
    ]
    return _table(["", ""], body, text=2)


def _made(rows: Sequence[Row]) -> str:
    rules = dict.fromkeys(
        line for row in rows for line in str(row.get("rules", "")).splitlines() if line
    )
    first = next((row for row in rows if "versions" in row), {})
    versions = ", ".join(f"{k} {v}" for k, v in first.get("versions", {}).items())
    where = f"{first.get('devices', '?')} × {first.get('device_kind', '?')}"
    return (
        f"<p>{_e(versions)}; {_e(where)}; commit {_e(first.get('commit') or 'unknown')}. Every run "
        "repeats from <code>runs/&lt;id&gt;/config.json</code>; this page from "
        "<code>python -m experiments.report --runs=DIR</code>.</p>"
        f"<pre>{_e(chr(10).join(rules))}</pre>"
    )


def _table(head: Sequence[str], body: Sequence[Sequence[str]], text: int = 1) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        kinds = [' class="text"' if i < text else "" for i in range(len(cells))]
        inner = "".join(f"<{tag}{k}>{_e(c)}</{tag}>" for c, k in zip(cells, kinds, strict=True))
        return f"<tr>{inner}</tr>"

    heading = f"<thead>{row(head, 'th')}</thead>" if any(head) else ""
    return (
        f'<div class="scroll"><table>{heading}<tbody>'
        + "".join(row(cells, "td") for cells in body)
        + "</tbody></table></div>"
    )


def _svg(text: str) -> str:
    """The figure itself, without the XML prologue that HTML does not take."""
    return "<figure>" + text[text.index("<svg") :] + "</figure>"


def _e(value: object) -> str:
    return html.escape(str(value))
