"""The report's page: what a sweep showed, as one self-contained HTML file.

The answer comes first, then the figure that shows it, then how far to trust it; all else follows.
All that comes from a workdir is escaped, or drawn by this package: the page reads no file, and the
only markup that it embeds is that of a `style.Drawing`. Nothing on it needs a network, and a reader
without scripts misses the slider, sorting and filtering alone.
"""

import base64
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from research import scaling
from research.io.humanize import flops_text
from research.report import (
    downstream_text,
    fit_text,
    interactive,
    ladder_text,
    methods,
    provenance,
    recipe_text,
    run_table,
    text,
)
from research.report.captions import best_run_sentence, caption, finding
from research.report.elements import (
    embed_figure,
    escape,
    figure_element,
    html_table,
    paragraphs,
    warnings_box,
)
from research.report.fit_text import estimate, interval_end
from research.report.page_assets import CSS, SCRIPT
from research.report.style import Drawing
from research.runs import scores
from research.runs.schema import COLUMNS, NOUNS, shown_columns
from research.runs.settings import shown_setting, varying_settings

Row = dict[str, Any]

LOSS = next(column for column in COLUMNS if column.name == "loss")
MOST_PARTS = 4  # that a reader of many groups sees unfolded
MOST_SETTINGS = 8  # of those that vary, as columns
IDENTIFIED = {"ok": "yes", "weak": "poorly", "open": "no: its interval is open",
              "at_bound": "no: at its bound", "fixed": "fixed"}  # fmt: skip
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
STILL = {
    "multiverse": "Multiverse analysis",
    "residuals": "Residuals",
    "curves": "Learning curves",
    "collapse": "Learning curves, normalized",
}


class _Figures:
    """The figures by name, each of which is shown once."""

    def __init__(self, drawings: Mapping[str, Drawing], found: Mapping[str, str], of_loss: str):
        self._left = {name: embed_figure(drawing) for name, drawing in drawings.items()}
        self._found = found
        self._kinds = {"loss": of_loss}

    def take(self, *names: str) -> list[str]:
        """The elements of those that there are and that are not on the page yet."""
        left, found, kinds = self._left, self._found, self._kinds
        return [
            figure_element(left.pop(n), caption(kinds.get(n, n)), found.get(n, ""))
            for n in names
            if n in left
        ]

    def of(self, stem: str) -> list[str]:
        return self.take(*(name for name in [*self._left] if name.startswith(stem)))

    def first(self, *names: str) -> list[str]:
        """The first that there is."""
        return self.take(*[name for name in names if name in self._left][:1])


def render_page(result: Mapping[str, Any], drawings: Mapping[str, Drawing]) -> str:
    """The whole page, of what build.write_report found and the figures by name."""
    fits = result["fits"]
    (first, *others) = fits.values()
    of_loss = "groups" if others else "loss" if first["analysis"] else "runs"
    figures = _Figures(drawings, _findings(result, drawings), of_loss)
    name = str(result["rows"][0].get("name") or "sweep")
    parts = [
        f"<h1>{escape(name)}</h1>",
        *_answer(result),
        # Of several groups no valleys come first: what compares them does, or the losses of all.
        *figures.first(
            "transfer_rate", "ladder", "compare", "isoflop_isoflop", "loss", "chinchilla_losses"
        ),
        *_rungs(result, figures),
        *_trust(result),
        *_compared(result, figures),
    ]
    if explorer := _explorer(result):
        parts += ['<section class="explore">', "<h2>Explore the fit</h2>", explorer, "</section>"]
    parts += _laws(result, figures)
    parts += downstream_text.page(result["downstream"], len(fits) > 1)
    parts += recipe_text.page(result, figures.take)
    parts += _still_figures(result, figures)
    parts += ["<h2>Runs</h2>", _runs_table(result["rows"], len(fits) > 1)]
    if matrix := figures.take("confusion"):
        best = best_classifier([row for row in result["rows"] if row["status"] == "done"])
        parts += ["<h2>Per-class metrics</h2>", *matrix, _class_table(best) if best else ""]
    if cards := result["cards"]:
        parts += ["<h2>Data</h2>", *map(_data_card, cards, itertools.count(1))]
    parts += ["<h2>Provenance</h2>", _provenance(fits)]
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(name)}</title><style>{CSS}</style></head><body>\n<main>\n{body}\n"
        f"</main>\n<script>{SCRIPT}</script></body></html>\n"
    )


def _findings(result: Mapping[str, Any], drawings: Mapping[str, Drawing]) -> dict[str, str]:
    """What each figure of a law or method found, by the names of the figures."""
    out = {}
    for group, found in result["methods"].items():
        for law, analysis in found.sections.items():
            stem = f"{figure_name(result['methods'], group, law)}_"
            for name in drawings:
                if name.startswith(stem):
                    out[name] = finding(name.removeprefix(stem), analysis.document)
    documents = [fit["document"] for fit in result["fits"].values()]
    if len(documents) == 1 and documents[0]:
        for name in ("multiverse", "loss", "residuals"):
            if name in drawings:
                out[name] = finding(name, documents[0])
    if words := ladder_text.verdict(result["rungs"]):
        out["ladder"] = f"{words}."
    if compared := result["compared"]:
        out["compare"] = fit_text.comparison_sentences(compared.document)[0]
    rows = result["rows"]
    for metric in text.page_metrics(rows):
        out[text.figure_name(metric)] = best_run_sentence(rows, metric)
    out["curves"] = best_run_sentence(rows, LOSS)
    if section := result["collapse"]:
        out["collapse"] = (
            f"The curves deviate from their common one by {section['all']:.1%}; batch noise alone "
            f"would give {section['noise']:.1%}."
        )
    return out


def _answer(result: Mapping[str, Any]) -> list[str]:
    several = len(result["fits"]) > 1
    moved = result["transfer"].verdict
    out = [f'<p class="lead first">{escape(moved[0].upper() + moved[1:])}.</p>'] if moved else []
    if compared := result["compared"]:
        lines = fit_text.comparison_sentences(compared.document)
        first = "" if moved else " first"
        out.append(f'<p class="lead{first}">{escape(lines[0])}</p>')
        out += [f'<p class="lead">{escape(line)}</p>' for line in lines[1:]]
    opened, each = bool(out), []
    answers = result["answers"]
    if moved and not any(fit["document"] for fit in result["fits"].values()):
        answers = {}  # a check of transfer is no sweep over sizes: it is not asked for a law
    for group, sentences in answers.items():
        for i, line in enumerate(sentences):
            words = f"{group}: {line}" if several else line
            first = "" if i or opened else " first"
            each.append(f'<p class="lead{first}">{escape(words)}</p>')
    return [*out, *_folded(f"What each of the {len(answers)} groups says", each, opened)]


def _folded(summary: str, parts: Sequence[str], opened: bool = True) -> list[str]:
    """Parts that a reader unfolds, where there are more than MOST_PARTS and others come first."""
    if not opened or len(parts) <= MOST_PARTS:
        return [*parts]
    return [f"<details><summary>{escape(summary)}</summary>", *parts, "</details>"]


def _rungs(result: Mapping[str, Any], figures: _Figures) -> list[str]:
    if not (rungs := result["rungs"]):
        return []
    # The verdict has opened the page.
    told = [line for line in ladder_text.sentences(rungs) if line != ladder_text.verdict(rungs)]
    made = result["registrations"]
    told += dict.fromkeys(note for each in made.values() for note in each.get("notes", ()))
    told += [ladder_text.registration_line(*each) for each in made.items()]
    return [
        "<h2>Larger runs, predicted and measured</h2>",
        html_table(*ladder_text.table_rows(rungs), text=0, label="rungs"),
        *figures.take("forecasts"),
        *paragraphs([f"{line}." for line in told]),
    ]


def _trust(result: Mapping[str, Any]) -> list[str]:
    """How the methods agree, all warnings, and what the parameters are known to."""
    several, out = len(result["fits"]) > 1, []
    for group, (head, *body) in result["tables"].items():
        of, named = (f" of {group}", f": {group}") if several else ("", "")
        budget = flops_text(result["methods"][group].target)
        out += [
            f"<h3>How the methods agree{escape(named)}</h3>",
            f"<p>At {budget} FLOPs (6 N D), with 95 % intervals:</p>",
            html_table(head, body, label=f"methods{of}"),
            *paragraphs(result["agreement"][group]),
        ]
    out.append(warnings_box(result["warnings"]))
    laws: list[str] = []
    for group, fit in result["fits"].items():
        if document := fit["document"]:
            named = f" of {group}" if several else ""
            expected = fit_text.expected_exponent_sentence(result["cards"], document)
            parts = [f"<h3>Fitted law{escape(named)}</h3>",
                     _fit_table(document, f"parameters{named}"),
                     *paragraphs([expected] if expected else [])]  # fmt: skip
            laws.append("\n".join(parts))
    out += _folded(f"The fitted laws of {len(laws)} groups", laws)
    return ["<h2>How far to trust it</h2>", *out] if any(out) else []


def _compared(result: Mapping[str, Any], figures: _Figures) -> list[str]:
    out = []
    side = (
        text.comparison_table(result["rows"], result["against"]) if len(result["fits"]) > 1 else []
    )
    if side:
        out += ["<h2>Groups compared</h2>", html_table(side[0], side[1:], label="groups")]
        out.append(
            "<p>At the largest number of tokens of each group; mean ± standard deviation (runs) "
            "where there is more than one run.</p>"
        )
    if compared := result["compared"]:
        words = " ".join(fit_text.comparison_sentences(compared.document))
        out += ["<h2>Shared law, one multiplier per group</h2>", *paragraphs([words])]
        out += figures.take("compare")
    return out


def _laws(result: Mapping[str, Any], figures: _Figures) -> list[str]:
    """Every law and method with its figures, and why one is left out."""
    fits, out = result["fits"], []
    if loss := figures.take("loss"):
        noun = NOUNS.get(result["against"], result["against"])
        out += [f"<h2>Loss against {escape(noun)}</h2>", *loss]
    for group, found in result["methods"].items():
        of = f" of {group}" if len(fits) > 1 else ""
        for law, heading in SURFACES.items():
            if law in found.reasons:
                out.append(f"<h2>{heading}{escape(of)}</h2>")
                details = "".join(f"<li>{escape(line)}</li>" for line in found.details[law])
                out += paragraphs([f"Left out: {found.reasons[law]}."])
                out += [f"<ul>{details}</ul>"] if details else []
            elif law in found.analyses:
                words = fit_text.fit_summary(found.document(law), brief=True, alone=False)
                out += [f"<h2>{heading}{escape(of)}</h2>", f"<pre>{escape(words)}</pre>"]
                out += figures.of(f"{figure_name(fits, group, law)}_")
    for metric in text.page_metrics(result["rows"]):
        if figure := figures.take(text.figure_name(metric)):
            out += [f"<h2>Held-out {escape(metric.title)}</h2>", *figure]
    return out


def _still_figures(result: Mapping[str, Any], figures: _Figures) -> list[str]:
    out = []
    for name, heading in STILL.items():
        if figure := figures.take(name):
            out += [f"<h2>{heading}</h2>", *figure]
            if name == "curves":
                names = [text.figure_name(m, name) for m in text.set_losses(result["rows"])]
                out += figures.take(*names)
            if name == "collapse":
                words = text.collapse_sentences(result["collapse"])
                out += paragraphs([f"{line}." for line in words])
    return out


def _explorer(result: Mapping[str, Any]) -> str:
    """The chart with a slider, of the first law that there is, and what its marks are."""
    fits, surfaces = result["fits"], result["surfaces"]
    unit = scaling.loss_unit(result["rows"])
    done = [row for row in result["rows"] if row["status"] == "done" and row.get("loss")]
    counted = [row for row in done if row.get("params") and row.get("tokens")]
    if len(fits) > 1:
        return ""
    first, by_budget = next(iter(fits.values())), next(iter(surfaces.values()))
    if by_budget:
        name, analysis = next(iter(by_budget.items()))
        charts = interactive.budget_chart(counted, analysis.document, unit)
        words = f"The compute-optimal loss at budgets 6 N D by {methods.NAMES[name]}, alone"
    elif first["analysis"]:
        charts = interactive.column_chart(done, first["analysis"].fit, result["against"], unit)
        words = "The fitted law"
    else:
        return ""
    if not charts or not (drawn := interactive.render_charts(charts)):
        return ""
    words += ", with its 95 % band. Dots are runs; the slider moves the orange mark along the law."
    return f"<figure>{drawn}<figcaption>{escape(words)}</figcaption></figure>"


def best_classifier(done: Sequence[Row]) -> Row | None:
    """The run with the highest accuracy, of those that kept their confusion matrix."""
    return max((r for r in done if r.get("confusion")), key=lambda r: r["accuracy"], default=None)


def _fit_table(document: Mapping[str, Any], label: str) -> str:
    head = ["parameter", "value", "95 % interval", "standard error", "identified"]
    body = []
    for name, value in document["params"].items():
        low, high = document["intervals"][name]
        error = document["standard_errors"][name]
        body.append(
            [
                name,
                estimate(value, low, high),
                f"{interval_end(low)} to {interval_end(high)}",
                "open" if error is None else f"{error:.3g}",
                IDENTIFIED[document["identifiability"][name]["flag"]],
            ]
        )
    noise, fall = document["seed_noise"], document["fall"]
    seeds = ""
    if noise and fall["in_seed_sd"]:
        seeds = (
            f" The seed-to-seed standard deviation is {noise['sd']:.3g} ({document['unit']}; "
            f"{noise['degrees_of_freedom']} degrees of freedom); the loss falls by "
            f"{fall['nats']:.3g} from the smallest to the largest, {fall['in_seed_sd']:.0f} times "
            "as much."
        )
    agree, certificate = document["starts"], document["certificate"]
    below = " below the held-out size" if document["holdout"] else ""
    return (
        f"<p>{escape(document['formula'])}, fitted to {document['n_points']} runs{below} by "
        f"{escape(OBJECTIVES[document['options']['objective']])}; intervals by "
        f"{escape(document['method'])}. "
        f"{agree['agree_fraction']:.0%} of {agree['total']} starts reach this minimum; gradient "
        f"norm {certificate['gradient_norm']:.1g}.{seeds}</p>" + html_table(head, body, label=label)
    )


def _runs_table(rows: Sequence[Row], several: bool) -> str:
    """The runs, to be sorted, filtered and taken away as CSV."""
    hidden = {
        *(() if several else ("group",)),
        *(() if _varies(rows, "train_examples") else ("train_examples",)),
    }
    shown = [column for column in shown_columns(rows, "page") if column.name not in hidden]
    varying = scores.shown(rows)
    varying += varying_settings(rows, [column.name for column in shown], MOST_SETTINGS)
    names = [*(column.name for column in shown), *varying]
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
    table = base64.b64encode(run_table.as_csv(rows, names).encode()).decode()
    link = f'<a download="runs.csv" href="data:text/csv;base64,{table}">Download CSV</a>'
    seen = {row.get("context") == 1 for row in rows}  # one token of context: an example
    of_kind = {} if len(seen) > 1 else {"tokens": "examples seen" if True in seen else "tokens"}
    head = [*(of_kind.get(column.name, column.title) for column in shown), *varying]
    values = [[row.get(name) for name in names] for row in rows]
    return (
        f'<div class="tools">{link}</div>'
        + html_table(head, body, text=2, label="runs", values=values)
        + f"<p>{escape(words.get(convention, convention))}</p>"
    )


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
    return f"<p>{escape(words)}</p>" + html_table(
        ["class", "held out", *kinds], body, label="classes"
    )


def _data_card(card: Mapping[str, Any], number: int) -> str:
    body = []
    for key, value in card.items():
        if key in ("overlap", "overlap_length"):
            continue
        shown = f"{value:,}" if isinstance(value, int) else str(value)
        body.append([CARD.get(key, key.replace("_", " ")), shown])
    if isinstance(card.get("overlap"), float):
        label = f"held-out {card.get('overlap_length')}-grams that occur in training"
        body.append([label, f"{card['overlap']:.1%}"])
    return html_table(["", ""], body, text=2, label=f"data {number}")


def _provenance(fits: Mapping[str, Mapping[str, Any]]) -> str:
    """What the runs of each group were made from, and the rules that they followed."""
    rows = [row for fit in fits.values() for row in fit["rows"]]
    rules = dict.fromkeys(
        line for row in rows for line in str(row.get("rules", "")).splitlines() if line
    )
    told = escape("\n".join(rules))
    summary = "<summary>Sizes, steps and rates of the runs</summary>"
    details = f"<details>{summary}<pre>{told}</pre></details>" if told else ""
    head, *body = provenance.provenance_table({name: fit["rows"] for name, fit in fits.items()})
    return (
        html_table(head if len(fits) > 1 else ["", ""], body, len(head), label="provenance")
        + "<p>Every run can be repeated from <code>runs/&lt;id&gt;/config.json</code>; this page "
        "from <code>isoflop report --runs=DIR</code>.</p>" + details
    )


def slug(name: str) -> str:
    """A name as part of the name of a file."""
    return re.sub(r"\W+", "_", name)


def figure_name(groups: Iterable[str], group: str, law: str) -> str:
    """How the figures and the document of a group's law begin; of a single group, by the law."""
    return law if len(list(groups)) == 1 else f"{slug(group)}-{law}"
