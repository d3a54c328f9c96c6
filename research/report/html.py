"""The report's page: what a sweep showed, as one self-contained HTML file.

All that comes from a workdir is escaped, or drawn by this package: the page reads no file, and the
only markup that it embeds is that of a `style.Drawing`. Nothing on it needs a network, and a reader
without scripts misses the slider alone.
"""

import base64
import html
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from research import scaling
from research.report import interactive, ladder_text, provenance, text
from research.report.style import Drawing
from research.report.text import interval_end
from research.runs.schema import NOUNS, shown_columns
from research.runs.settings import shown_setting, varying_settings

Row = dict[str, Any]

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
svg, img { max-width: 100%; height: auto; }
.chart form label, .vega-bind { font-size: .95rem; }
.chart input[type=range] { width: 20rem; vertical-align: middle; }
.chart input[type=range] ~ * { display: none; }
code, pre { background: #f5f5f5; font-size: .85rem; }
pre { padding: .6rem; overflow-x: auto; white-space: pre-wrap; }
"""
MOST_SETTINGS = 8  # of those that vary, as columns
LARGE = 120_000  # characters of an SVG
COLORS = 96
OBJECTIVES = {
    "mse_log": "least squares of the log loss",
    "mse": "least squares of the loss",
    "huber_log": "Huber's loss of the log loss",
}
SURFACES = {
    "chinchilla": "Loss against parameters and tokens",
    "isoflop": "Compute-optimal sizes from isoFLOP minima",
    "envelope": "Compute-optimal sizes from the envelope of all runs",
}
CARD = {
    "train_tokens": "training tokens, unique",
    "heldout_tokens": "held-out tokens",
    "train_examples": "training examples",
    "heldout_examples": "held-out examples",
    "digest": "SHA-256",
}


def render_page(result: Mapping[str, Any], drawings: Mapping[str, Drawing]) -> str:
    """The whole page, of what build.write_report found and the figures by name."""
    svgs = {name: _embed_figure(name, drawing) for name, drawing in drawings.items()}
    rows, fits, against = result["rows"], result["fits"], result["against"]
    name, several = str(rows[0].get("name") or "sweep"), len(fits) > 1
    parts = [f"<h1>{_escape(name)}</h1>"]
    for group, fit in fits.items():
        words = f"{group}: " if several else ""
        parts.append(f'<p class="lead">{_escape(words + text.headline(fit["document"]))}</p>')
    parts += [f'<p class="warn">{_escape(w)}</p>' for w in _warnings(rows, fits, result["notes"])]
    if "loss" in svgs:
        noun = NOUNS.get(against, against)
        parts += [f"<h2>Loss against {_escape(noun)}</h2>", _figure_element(svgs["loss"])]
    if rungs := result["rungs"]:
        told = ladder_text.sentences(rungs)
        told += [ladder_text.registration_line(*each) for each in result["registrations"].items()]
        parts += ["<h2>Larger runs, predicted and measured</h2>"]
        parts += [_html_table(ladder_text.HEADINGS, ladder_text.table_rows(rungs), text=0)]
        parts += [_figure_element(svgs[name]) for name in ("ladder", "forecasts") if name in svgs]
        parts += [f"<p>{_escape(line)}.</p>" for line in told]
    if explorer := _explorer(result):
        parts += ["<h2>Explore the fit</h2>", explorer]
    for group, analyses in result["surfaces"].items():
        for law, analysis in analyses.items():
            of, stem = f" of {group}" if several else "", figure_name(fits, group, law)
            parts.append(f"<h2>{SURFACES[law]}{_escape(of)}</h2>")
            parts.append(f"<pre>{_escape(text.fit_summary(analysis.document, brief=True))}</pre>")
            parts += [_figure_element(x) for key, x in svgs.items() if key.startswith(f"{stem}_")]
    for metric in text.page_metrics(rows):
        if figure := svgs.get(text.figure_name(metric)):
            parts += [f"<h2>Held-out {_escape(metric.title)}</h2>", _figure_element(figure)]
    if several and (side := text.comparison_table(rows, against)):
        parts += ["<h2>Groups compared</h2>", _html_table(side[0], side[1:])]
        parts.append("<p>Mean ± standard deviation (runs) where there is more than one.</p>")
    if compared := result["compared"]:
        words = " ".join(f"{w}." for w in compared.document["compare"]["words"])
        parts += [
            "<h2>Shared law, one multiplier per group</h2>",
            f"<p>{_escape(words)}</p>",
            _figure_element(svgs["compare"]),
        ]
    for group, fit in fits.items():
        if fit["document"]:
            parts.append(f"<h2>Fitted law{_escape(f' of {group}') if several else ''}</h2>")
            expected = text.expected_exponent_sentence(result["cards"], fit["document"])
            parts += [
                _fit_table(fit["document"]),
                f"<p>{_escape(expected)}</p>" if expected else "",
            ]
    parts += ["<h2>Runs</h2>", _runs_table(rows, several)]
    if "confusion" in svgs:
        best = best_classifier([row for row in rows if row["status"] == "done"])
        parts += [
            "<h2>Per-class metrics</h2>",
            _figure_element(svgs["confusion"]),
            _class_table(best) if best else "",
        ]
    still = (
        ("curves", "Learning curves"),
        ("collapse", "Learning curves, normalized"),
        ("residuals", "Residuals"),
        ("multiverse", "Multiverse analysis"),
    )
    for figure, heading in still:
        if figure in svgs:
            parts += [f"<h2>{heading}</h2>", _figure_element(svgs[figure])]
            if figure == "collapse":
                words = text.collapse_sentences(result["collapse"])
                parts += [f"<p>{_escape(line)}.</p>" for line in words]
    parts += ["<h2>Data</h2>", *(_data_card(card) for card in result["cards"])]
    parts += ["<h2>Provenance</h2>", _provenance(fits)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_escape(name)}</title><style>{CSS}</style></head><body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _explorer(result: Mapping[str, Any]) -> str:
    """The chart with a slider, of the first law that there is."""
    fits, surfaces = result["fits"], result["surfaces"]
    unit = scaling.loss_unit(result["rows"])
    done = [row for row in result["rows"] if row["status"] == "done" and row.get("loss")]
    for analysis in next(iter(surfaces.values())).values() if len(fits) == 1 else ():
        return interactive.render_charts(interactive.budget_chart(done, analysis.document, unit))
    first = next(iter(fits.values()))
    if len(fits) > 1 or not first["analysis"]:
        return ""
    charts = interactive.column_chart(done, first["analysis"].fit, result["against"], unit)
    return interactive.render_charts(charts) if charts else ""


def best_classifier(done: Sequence[Row]) -> Row | None:
    """The run with the highest accuracy, of those that kept their confusion matrix."""
    return max((r for r in done if r.get("confusion")), key=lambda r: r["accuracy"], default=None)


def _warnings(rows: Sequence[Row], fits: Mapping[str, Mapping], notes: Sequence[str]) -> list[str]:
    out = list(notes)
    for name, fit in fits.items():
        of = f" for {name}" if len(fits) > 1 else ""
        out += [f"No law was fitted{of}: {fit['why']}"] if fit["why"] else []
        document = fit["document"]
        out += [f"{w}{of}" for w in document["warnings"] if w not in notes] if document else []
    for row in rows:
        if row["status"] != "done":
            out.insert(0, f"Run {row['run']} is {row['status']}. {row.get('reason', '')}")
    repeated = [row for row in rows if row.get("epochs", 0) > 1 and row.get("context", 0) > 1]
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
                f"{interval_end(low)} to {interval_end(high)}",
                "open" if error is None else f"{error:.2g}",
                document["identifiability"][name]["flag"],
            ]
        )
    noise, fall = document["seed_noise"], document["fall"]
    seeds = ""
    if noise and fall["in_seed_sd"]:
        seeds = (
            f" The seed's standard deviation is {noise['sd']:.3g} ({document['unit']}; "
            f"{noise['degrees_of_freedom']} degrees of freedom); from the smallest to the largest "
            f"the loss falls by {fall['nats']:.3g}, {fall['in_seed_sd']:.0f} of it."
        )
    agree, certificate = document["starts"], document["certificate"]
    return (
        f"<p>{_escape(document['formula'])}, fitted to {document['n_points']} runs below the "
        f"held-out size by {_escape(OBJECTIVES[document['options']['objective']])}; intervals by "
        f"{_escape(document['method'])}. "
        f"{agree['agree_fraction']:.0%} of {agree['total']} starts reach this minimum; gradient "
        f"norm {certificate['gradient_norm']:.1g}.{seeds}</p>" + _html_table(head, body)
    )


def _runs_table(rows: Sequence[Row], several: bool) -> str:
    hidden = {
        *(() if several else ("group",)),
        *(() if _varies(rows, "train_examples") else ("train_examples",)),
    }
    shown = [column for column in shown_columns(rows, "page") if column.name not in hidden]
    varying = varying_settings(rows, [column.name for column in shown], MOST_SETTINGS)
    head = [*(column.title for column in shown), *varying]
    body = [
        [column.text(row.get(column.name)) for column in shown]
        + [shown_setting(row.get(name)) for name in varying]
        for row in rows
    ]
    convention = next((row["flops_convention"] for row in rows if "flops_convention" in row), "")
    words = {
        "exact_full": "FLOPs count every dot product and convolution, forward and backward, with "
        "the head and the full attention map."
    }
    return _html_table(head, body, text=2) + f"<p>{_escape(words.get(convention, convention))}</p>"


def _varies(rows: Sequence[Row], column: str) -> bool:
    return len({row.get(column) for row in rows}) > 1


def _class_table(row: Row) -> str:
    """Precision, recall and F1 of each class of one run."""
    kinds = ("precision", "recall", "f1")
    body = [
        [str(name), str(sum(counts)), *(f"{row[f'class_{kind}'][i]:.3f}" for kind in kinds)]
        for i, (name, counts) in enumerate(zip(row["class_names"], row["confusion"]))
    ]
    words = f"Run {row['run']}, the most accurate: accuracy {row['accuracy']:.4f}."
    return f"<p>{_escape(words)}</p>" + _html_table(["class", "held out", *kinds], body)


def _data_card(card: Mapping[str, Any]) -> str:
    body = []
    for key, value in card.items():
        if key in ("overlap", "overlap_length"):
            continue
        shown = f"{value:,}" if isinstance(value, int) else str(value)
        body.append([CARD.get(key, key.replace("_", " ")), shown])
    if isinstance(card.get("overlap"), float):
        label = f"held-out {card.get('overlap_length')}-grams that occur in training"
        body.append([label, f"{card['overlap']:.1%}"])
    return _html_table(["", ""], body, text=2)


def _provenance(fits: Mapping[str, Mapping[str, Any]]) -> str:
    """What the runs of each group were made from, and the rules that they followed."""
    rows = [row for fit in fits.values() for row in fit["rows"]]
    rules = dict.fromkeys(
        line for row in rows for line in str(row.get("rules", "")).splitlines() if line
    )
    head, *body = provenance.provenance_table({name: fit["rows"] for name, fit in fits.items()})
    return (
        _html_table(head if len(fits) > 1 else ["", ""], body, text=len(head))
        + "<p>Every run repeats from <code>runs/&lt;id&gt;/config.json</code>; this page from "
        "<code>python -m experiments.report --runs=DIR</code>.</p>"
        f"<pre>{_escape(chr(10).join(rules))}</pre>"
    )


def slug(name: str) -> str:
    """A name as part of the name of a file."""
    return re.sub(r"\W+", "_", name)


def figure_name(groups: Iterable[str], group: str, law: str) -> str:
    """How the figures and the document of a group's law begin; of a single group, by the law."""
    return law if len(list(groups)) == 1 else f"{slug(group)}-{law}"


def _html_table(head: Sequence[str], body: Sequence[Sequence[str]], text: int = 1) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        kinds = [' class="text"' if i < text else "" for i in range(len(cells))]
        inner = "".join(
            f"<{tag}{k}>{_escape(c)}</{tag}>" for c, k in zip(cells, kinds, strict=True)
        )
        return f"<tr>{inner}</tr>"

    heading = f"<thead>{row(head, 'th')}</thead>" if any(head) else ""
    return (
        f'<div class="scroll"><table>{heading}<tbody>'
        + "".join(row(cells, "td") for cells in body)
        + "</tbody></table></div>"
    )


def _embed_figure(name: str, drawing: Drawing) -> str:
    """A figure for the page: the SVG itself, without the XML prologue that HTML does not take; or,
    where it has so many marks that it is LARGE, the PNG in COLORS, which is smaller."""
    from PIL import Image  # matplotlib's own

    markup = drawing.svg.decode()
    if len(markup) <= LARGE:
        return markup[markup.index("<svg") :]
    raw = io.BytesIO()
    Image.open(io.BytesIO(drawing.png)).convert("RGB").quantize(COLORS).save(raw, "png")
    data = base64.b64encode(raw.getvalue()).decode()
    return f'<img alt="{_escape(name)}" src="data:image/png;base64,{data}">'


def _figure_element(markup: str) -> str:
    return f"<figure>{markup}</figure>"


def _escape(value: object) -> str:
    return html.escape(str(value))
