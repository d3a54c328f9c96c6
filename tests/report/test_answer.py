"""The answer that opens a report: one target, one count of FLOPs, every method, every warning."""

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest

from research import scaling
from research.errors import BadInput
from research.io.humanize import flops_text, quantity, significant
from research.report import (
    answer,
    build,
    captions,
    decision_figures,
    fit_text,
    interactive,
    text,
    warning_groups,
)
from research.report.methods import NAMES, Methods, fit_methods
from research.scaling import compute_optimal
from research.scaling.power_laws import PowerLaws
from research.scaling.rungs import make_forecaster
from tests.report.test_report import in_browser, without_scripts, workdir
from tests.scaling.test_minima import iso_rows

COUNT = 1.3  # the table's FLOPs over 6 N D


def swept(**changed):
    """A sweep over sizes and budgets whose table counts more FLOPs than 6 N D."""
    rows = iso_rows(0.002, sizes=6, span=8.0, budgets=np.geomspace(1e13, 1e15, 4))
    rows = [{**r, "flops": COUNT * r["flops"], "status": "done", **changed} for r in rows]
    return [{**r, "params": round(r["params"]), "tokens": round(r["tokens"])} for r in rows]


def six_nd(prediction):
    return 6 * prediction["params"] * prediction["tokens"]


@pytest.fixture(scope="module")
def asked():
    return fit_methods({"": swept()}, False, None, draw=False)[""]


def test_all_methods_speak_of_one_target_by_one_count(asked):
    rows = swept()
    assert asked.target == 10 * max(6 * r["params"] * r["tokens"] for r in rows)
    for name in NAMES:
        assert six_nd(asked.prediction(name)) == pytest.approx(asked.target, rel=1e-6), name
    # What a ladder predicts by default is the same budget.
    forecaster = make_forecaster("chinchilla", rows)
    assert forecaster.largest_budget * compute_optimal.AHEAD == pytest.approx(asked.target)
    # The twin: a method that was asked in the table's own count answers for less.
    of_table = scaling.analyze("isoflop", rows, {"predict_flops": [asked.target]}, checks_too=False)
    assert six_nd(of_table.document["predictions"][0]) < 0.9 * asked.target


def test_the_answer_is_that_of_the_average_in_numbers(asked):
    document = asked.document("auto")
    best = document["predictions"][-1]
    first, growth, *_ = answer.answer_sentences(asked, None)
    low, high = best["intervals"]["loss"]
    assert first == (
        f"Train {quantity(best['params'])} parameters on {quantity(best['tokens'])} tokens for "
        f"{flops_text(asked.target)} FLOPs (6 N D, 10 times the largest budget): expected loss "
        f"{significant(best['loss'])} ({significant(low)} to {significant(high)})."
    )
    assert f"C^{document['optimal']['params_exponent']:.2f} (" in growth
    alone = Methods(asked.target, {"chinchilla": asked.analyses["chinchilla"]}, {"auto": "why"})
    other, _, told, *_ = answer.answer_sentences(alone, None)
    assert other != first
    assert told == "This is L(N, D), Chinchilla's law, alone: why."
    assert not [w for w in answer.answer_sentences(asked, None) if "alone" in w]


@pytest.mark.parametrize(
    ("ends", "words"),
    [
        ((None, None), " (open to open), expected loss "),
        ((2e5, None), " (200k to open), expected loss "),
        ((1e5, 2e6), " (100k to 2M), expected loss "),
        ((1e5, 9e5), None),
    ],
)
def test_a_size_that_the_runs_do_not_determine_is_no_advice(asked, ends, words):
    document = copy.deepcopy(asked.document("auto"))
    document["predictions"][-1]["intervals"]["params"] = ends
    document["optimal"]["intervals"]["params_exponent"] = [None, None] if words else [0.4, 0.6]
    found = Methods(asked.target, {"auto": SimpleNamespace(document=document)})
    first, growth, *_ = answer.answer_sentences(found, None)
    assert first.startswith("Train ") == (words is None)
    if words:
        assert first.startswith("These runs do not determine the best size for ")
        assert words in first
    assert ("is open" in growth) == (words is not None)


def test_verdict_and_missing_runs_are_told(asked):
    plain = answer.answer_sentences(asked, None)
    told = answer.answer_sentences(asked, None, "1 of 1 rungs measured", (2, 26))
    assert [line for line in told if line not in plain] == [
        "1 of 1 rungs measured.",
        "2 of 26 runs are not done, and in no law.",
    ]
    assert told.index("1 of 1 rungs measured.") == 2  # before what was held out


def test_the_table_of_methods_has_a_line_for_each(asked):
    body = answer.methods_table(asked)
    assert [line[0] for line in body] == [*NAMES.values()]
    assert all(len(line) == len(answer.HEADINGS) for line in body)
    for line, name in zip(body, NAMES, strict=True):
        assert line[2].startswith(quantity(asked.prediction(name)["params"]))


def curved():
    """A sweep whose table counts the more over 6 N D the larger the budget is."""
    return [{**row, "flops": row["flops"] ** 1.1} for row in swept()]


def test_the_page_says_one_exponent_and_one_optimum_wherever_it_says_them():
    rows = curved()
    found = fit_methods({"": rows}, False, None, draw=False)[""]
    document = found.document("isoflop")
    value, ends = document["optimal"]["params_exponent"], document["optimal"]["intervals"]
    words = f"{value:.2f} ({' to '.join(f'{x:.2f}' for x in ends['params_exponent'])})"
    (line,) = [line for line in answer.methods_table(found) if line[0] == NAMES["isoflop"]]
    assert line[1] == words
    assert f"C^{words} by Akima" in captions.finding("isoflop", document)
    figure = decision_figures.isoflop_curves(document, found.analyses["isoflop"].rows)
    legend = [text.get_text() for of in figure.legends for text in of.get_texts()]
    words_of_figure = words.replace(" (", "}$ (", 1)
    assert f"Akima, minima: $N^* \\propto C^{{{words_of_figure}, $C = 6ND$" in legend
    summary = fit_text.fit_summary(document, brief=True, alone=False)
    assert f"a = {value:.4g} (" in summary
    assert f"best for {flops_text(found.target)} FLOPs: {line[2]} parameters" in summary
    assert f"At {flops_text(found.target)} FLOPs (6 N D)" in captions.finding("frontier", document)
    # The twin: in the table's own FLOPs both are others.
    own = scaling.analyze("isoflop", rows, {"predict_flops": [found.target]}, checks_too=False)
    assert own.document["optimal"]["flops_convention"] == "the table's"
    assert f"{own.document['params']['params_exponent']:.2f}" != f"{value:.2f}"
    assert "as the table counts them" in fit_text.fit_summary(own.document)


@pytest.mark.parametrize("law", ["isoflop", "envelope"])
def test_budgets_of_6nd_are_those_of_a_table_that_counts_so(law):
    """Whatever the table counts, if runs of one budget stay together."""
    plain = [{**row, "flops": 6 * row["params"] * row["tokens"]} for row in curved()]
    options = {"six_nd": True, "predict_flops": [1e16]}
    ours, theirs = (
        scaling.analyze(law, rows, options, checks_too=False).document for rows in (curved(), plain)
    )
    for name in ("params_exponent", "tokens_exponent"):
        assert ours["params"][name] == pytest.approx(theirs["params"][name], rel=1e-3)
    a, b = ours["predictions"][0], theirs["predictions"][0]
    assert a["params"] == pytest.approx(b["params"], rel=1e-3)
    assert a["intervals"]["params"] == pytest.approx(b["intervals"]["params"], rel=0.2)
    assert six_nd(a) == pytest.approx(1e16, rel=1e-3)
    own = scaling.analyze(law, curved(), {"predict_flops": [1e16]}, checks_too=False).document
    assert own["params"]["params_exponent"] == pytest.approx(
        theirs["params"]["params_exponent"] / 1.1, rel=1e-2
    )


@pytest.mark.slow
def test_a_method_that_is_left_out_says_why():
    # The least loss of each budget is that of its smallest size: no valley has a left side.
    rows = [{**r, "loss": 9 * r["params"] ** 0.02 / r["flops"] ** 0.05} for r in swept()]
    found = fit_methods({"": rows}, False, None, draw=False)[""]
    assert "isoflop" in found.reasons
    lines = {line[0]: line[1] for line in answer.methods_table(found)}
    for name, reason in found.reasons.items():
        assert lines[NAMES[name]] == f"left out: {reason}"
        assert f"{NAMES[name]}: left out: {reason}" in answer.methods_text(found)
    assert set(lines) == set(NAMES.values())
    assert "minimum lies between their sizes" in lines[NAMES["isoflop"]]


def test_runs_of_one_size_are_asked_by_no_method():
    found = fit_methods({"": [{**r, "params": 1000} for r in swept()]}, False, None, draw=False)[""]
    assert (found.analyses, found.reasons, found.answer) == ({}, {}, "")
    assert math.isnan(found.target)


def method(low, high):
    best = {"params": 1e5, "intervals": {"params": [low, high]}}
    return scaling.Analysis({"predictions": [best]}, None, [])


def test_agreement_is_told_by_the_intervals():
    def sentence(*spans):
        analyses = {name: method(*span) for name, span in zip(NAMES, spans) if name != "auto"}
        return answer.agreement_sentences(Methods(1.0, analyses))[0]

    any_ = (1.0, 1.0)  # for auto, which is not among them
    words = sentence(any_, (1e5, 3e5), (2e5, 4e5), (None, 2.5e5))
    assert "all 3 methods overlap (200k to 250k)" in words
    assert words.endswith(
        "a weak check, since some span more than a factor of 10: isoFLOP minima (parabola)."
    )
    words = sentence(any_, (1e5, 3e5), (3.1e5, 4e5))
    assert "do not all overlap: that of isoFLOP minima (Akima) begins at 310k" in words
    assert "L(N, D), Chinchilla's law has ended, at 300k" in words
    assert "check" not in words


def test_power_laws_by_6nd_cost_what_was_asked():
    optimal = np.array([0.5, math.log(0.02), 0.55, math.log(3.0)])
    moved = np.array([[0.1, -2, -0.02, 1], [0, 0, 0, 0]])
    laws = PowerLaws(optimal, optimal + moved, 0.0)
    found = laws.by_6nd()
    best = found.predict(1e13)
    assert six_nd(best) == pytest.approx(1e13)
    c = (1e13 / 6 / 0.06) ** (1 / 1.05)
    assert best["params"] == pytest.approx(0.02 * c**0.5)
    assert laws.predict(c)["params"] == pytest.approx(best["params"])
    for draw in found.draws:
        assert draw[0] + draw[2] == pytest.approx(1)
        assert draw[1] + draw[3] == pytest.approx(-math.log(6))
    assert laws.summary()["optimal"]["flops_convention"] == "the table's"
    with pytest.raises(BadInput, match="does not grow"):
        PowerLaws(np.array([0.5, 0, -0.6, 0]), laws.draws, 0.0).by_6nd()


@pytest.mark.parametrize(
    ("flops", "words"), [(1.0024e13, "1e13"), (2.4e21, "2.4e21"), (9.999e5, "1e6"), (3, "3")]
)
def test_flops_are_no_parameters(flops, words):
    assert flops_text(flops) == words


def test_merged_warnings_lose_no_name_and_no_other_line():
    names = ["E", "A", "beta_2", "r-1.x"]
    lines = [
        f"{name} is poorly constrained: its interval is wider than its value" for name in names
    ]
    lines += [
        "E is at its bound: these data identify no irreducible loss",
        "something else",
        "something else",
    ]
    lines += [f"Run {name} is failed. RuntimeError: fire" for name in ("r1", "r2")]
    lines += ["Run r3 is failed. OSError: water"]
    merged = warning_groups.merge_lines(lines)
    assert merged == [
        "E, A, beta_2 and r-1.x are poorly constrained: "
        "their intervals are wider than their values",
        "E is at its bound: these data identify no irreducible loss",
        "something else",
        "Runs r1 and r2 are failed. RuntimeError: fire",
        "Run r3 is failed. OSError: water",
    ]


def test_every_warning_is_said_once_below_what_to_do_about_it(asked):
    rows = [*swept(), {"run": "lost", "status": "failed", "reason": "<b>fire</b>"}]
    law = asked.document("chinchilla")
    fits = {"": {"rows": rows, "document": law, "why": ""}}
    groups = warning_groups.grouped_warnings(rows, fits, {"": asked}, ["a note", "a note"])
    lines = [line for of in groups.values() for line in of]
    assert len(lines) == len(set(lines))
    assert groups[warning_groups.AGAIN] == ["Run lost failed. <b>fire</b>"]
    # A run that diverged is not trained again.
    far = [{"run": "far", "status": "diverged", "reason": "the loss is not finite at step 3"}]
    lower = warning_groups.grouped_warnings(far, {}, {}, [])
    assert lower == {warning_groups.LOWER: ["Run far diverged. The loss is not finite at step 3"]}
    assert "a note" in groups[warning_groups.DATA]
    (counted,) = [line for line in lines if "6 * params * tokens" in line]
    assert counted in groups[warning_groups.COUNTING]
    assert "1.3 times" in counted
    without = warning_groups.grouped_warnings(swept(), fits, {}, [])
    assert warning_groups.AGAIN not in without
    assert not warning_groups.grouped_warnings(swept(), {}, {}, [])


def test_what_methods_warn_of_with_other_numbers_is_one_line(asked):
    law = {"warnings": ["0 of 9 runs are near to 139 tokens per parameter"]}
    warnings = ["0 of 9 runs are near to 191.5 tokens per parameter", "of its own: 3"]
    found = Methods(1.0, {"auto": SimpleNamespace(document={"warnings": warnings})})
    fits = {"": {"rows": [], "document": law, "why": ""}}
    (lines,) = warning_groups.grouped_warnings([], fits, {"": found}, []).values()
    assert lines == [*law["warnings"], "of its own: 3"]


def test_four_sizes_have_a_law_though_none_can_be_held_out():
    rows = [{"run": f"r{n}", "params": n, "tokens": 1e6, "loss": 2 + 50 / n**0.5, "status": "done"}
            for n in (1e3, 1e4, 1e5, 1e6, 1e7)]  # fmt: skip
    few, some = (build._fit_group(part, "params", False, {}) for part in (rows[:4], rows))
    assert few["document"]["holdout"] is None
    assert few["document"]["n_points"] == 4
    assert some["document"]["holdout"] is not None
    none = build._fit_group(rows[:3], "params", False, {})
    assert none["document"] is None
    assert "3 distinct values of params" in none["why"]
    assert "sizes and lengths" not in none["why"]
    both = [{**row, "tokens": d, "run": f"{row['run']}{d}"} for row in rows[:3] for d in (1e6, 2e6)]
    assert (
        "3 sizes and lengths: there are 3, 2" in build._fit_group(both, "params", False, {})["why"]
    )


@pytest.mark.parametrize(
    ("value", "low", "high", "words"),
    [(2.4e-11, 0.0, 0.66, "0"), (3.8e-16, -1.5, 1.5, "0"), (6.2e-6, 8e-22, 2e11, "6.2e-06"),
     (0.1, 0.0, 0.66, "0.1"), (2.4e-11, 0.0, None, "2.4e-11")],
)  # fmt: skip
def test_a_number_that_its_interval_cannot_tell_from_nothing_is_0(value, low, high, words):
    assert fit_text.estimate(value, low, high) == words


@pytest.mark.slow
def test_valleys_that_are_not_bracketed_are_named_with_the_side(tmp_path):
    """The smallest size is the best of every budget: the section says so, and draws none."""
    rows = [{**row, "loss": 2 + row["params"] / 1e5} for row in swept()]
    build.write_report(workdir(tmp_path, rows))
    section = (tmp_path / "report.html").read_text().partition("from isoFLOP minima</h2>")[2]
    section = section.partition("<h2>")[0]
    assert "Left out: isoflop needs two budgets" in section
    assert section.count("its lowest loss is at its smallest size: ") >= 2
    assert "<svg" not in section


def test_a_warning_of_several_groups_names_them_all():
    document = {"warnings": ["A is poorly constrained: its interval is wider than its value"]}
    fits = {name: {"rows": [], "document": document, "why": ""} for name in ("one", "two")}
    fits["two"]["document"] = {"warnings": [*document["warnings"], "another"]}
    ((_, first), (_, second)) = warning_groups.grouped_warnings([], fits, {}, []).items()
    assert first == ["A is poorly constrained: its interval is wider than its value (of one, two)"]
    assert second == ["another (of two)"]


def test_what_a_note_says_no_group_says_again():
    fits = {name: {"rows": [], "document": {"warnings": ["a note"]}, "why": ""} for name in "ab"}
    told = warning_groups.grouped_warnings([], fits, {}, ["a note"])
    assert [line for of in told.values() for line in of] == ["a note"]


def test_an_open_interval_does_not_make_the_axis(asked):
    pytest.importorskip("altair")
    document = asked.document("chinchilla")
    predictions = [
        {**p, "intervals": {**p["intervals"], "loss": [0.0, None]}} for p in document["predictions"]
    ]
    for shown, most in ((document, 1.2), ({**document, "predictions": predictions}, 2.0)):
        chart = interactive.budget_chart(swept(), shown, "nats")["explore"].to_dict()
        layers = chart["layer"]
        (band,) = [layer for layer in layers if layer["mark"]["type"] == "area"]
        for point in band["data"]["values"]:
            assert 1 / most <= point["low"] / point["loss"] <= point["high"] / point["loss"] <= most
    assert "0 to open" in band["data"]["values"][0]["words"]


def test_dots_and_law_are_of_one_count(asked):
    pytest.importorskip("altair")
    rows = swept()
    chart = interactive.budget_chart(rows, asked.document("chinchilla"), "nats")["explore"]
    drawn = chart.to_dict()["layer"]
    (dots,) = [layer for layer in drawn if layer["mark"]["type"] == "circle"]
    column = dots["encoding"]["x"]["field"]
    at = [value[column] for value in dots["data"]["values"]]
    assert at == [6 * row["params"] * row["tokens"] for row in rows]
    assert dots["encoding"]["x"]["title"].endswith("6 N D")
    assert "~e" in dots["encoding"]["x"]["axis"]["labelExpr"]  # 1e13: 10T would be tokens
    (line,) = [layer for layer in drawn if layer["mark"]["type"] == "line"]
    ends = [value["x"] for value in line["data"]["values"]]
    assert ends[0] == pytest.approx(min(at))
    assert ends[-1] == pytest.approx(10 * max(at))


@pytest.mark.parametrize("law", ["isoflop", "envelope"])
def test_a_frontier_is_of_6nd_also_where_the_table_counts_otherwise(law, asked):
    document = asked.document(law)
    axes = decision_figures.frontier(document["minima"], document).axes[0]
    assert "C = 6ND" in axes.get_xlabel()
    dots = [float(np.asarray(at.get_xdata())[0]) for at in axes.lines if at.get_marker() == "o"]
    assert dots == pytest.approx([six_nd(m) for m in document["minima"]])
    for minimum in document["minima"]:
        assert minimum["flops"] == pytest.approx(six_nd(minimum))
        if law == "isoflop":
            assert minimum["budget"] == pytest.approx(COUNT * six_nd(minimum), rel=0.05)
    (fit,) = [at for at in axes.lines if str(at.get_label()).startswith("this fit: ")]
    x, n = (np.log(np.asarray(values)) for values in (fit.get_xdata(), fit.get_ydata()))
    assert np.diff(n) / np.diff(x) == pytest.approx(document["optimal"]["params_exponent"])


SORTING = """<script>
const table = document.querySelector("table.sortable");
const order = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent);
const buttons = [...table.tHead.querySelectorAll("button")];
const loss = buttons.find((button) => button.textContent === "loss");
const out = document.createElement("pre");
const seen = [order()];
loss.click(); seen.push(order());
loss.click(); seen.push(order());
const input = document.querySelector(".tools input");
input.value = "R7"; input.dispatchEvent(new Event("input"));
const shown = [...table.tBodies[0].rows].filter((row) => !row.hidden);
seen.push(shown.map((row) => row.cells[0].textContent));
seen.push(loss.parentElement.getAttribute("aria-sort"));
out.id = "probe";
setTimeout(() => {
  document.body.style.width = "360px";
  const right = document.body.getBoundingClientRect().right;
  const boxes = [...document.querySelectorAll(".chart, .drawn, .scroll, p, ul, pre, h1, h2, img")];
  const wide = boxes.filter((box) => box.getBoundingClientRect().right > right + 1);
  seen.push([wide.map((box) => box.outerHTML.slice(0, 80)), boxes.length]);
  out.textContent = JSON.stringify(seen);
  document.body.appendChild(out);
}, 1500);
</script></body>"""


@pytest.mark.slow
def test_the_page_of_a_sweep_in_a_browser_and_without_scripts(tmp_path):
    rows = swept()
    result = build.write_report(workdir(tmp_path, rows))
    page = (tmp_path / "report.html").read_text()
    still = without_scripts(page)
    asked = result["methods"][""]
    assert (tmp_path / "fit-auto.json").exists()
    (first, *_) = result["answers"][""]
    assert still.index(first) < still.index("<figure") < still.index("How far to trust it")
    assert text.text_summary(result).strip().startswith(first)
    budget = flops_text(asked.target)
    best = [line for line in still.splitlines() if "best for" in line]
    assert best
    for line in best:
        assert f"best for {budget} FLOPs" in line
    assert still.count("<figure>") == still.count("<figcaption>") > 8
    assert "<figcaption><strong>The optimal size grows as C^" in still
    assert still.count('role="img" aria-label="') == still.count('<div class="drawn')
    assert still.count("<th>") == 0
    assert still.count('class="scroll" tabindex="0"') == still.count('class="scroll"')
    (seen, console) = in_browser(page, tmp_path, SORTING)
    assert not console
    before, up, down, filtered, state, (wide, boxes) = seen
    assert not wide
    assert boxes > 30
    by_loss = [row["run"] for row in sorted(rows, key=lambda row: row["loss"])]
    assert before != up == by_loss
    assert down == by_loss[::-1]
    assert filtered == ["r7"]
    assert state == "descending"
