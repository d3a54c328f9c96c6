"""Figures for papers and talks: what they hold, how they are written, what they are refused for."""

import os
import re
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

import isoflop
from experiments import plot as command
from research import scaling
from research.errors import BadInput
from research.io.humanize import flops_text
from research.report import (
    captions,
    decision_figures,
    figures,
    fit_figures,
    style,
    sweep_figures,
)
from research.scaling.laws import METHODS
from tests.report.test_report import workdir

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = 4.0  # of 255, root mean square
OF_ROWS = ("isoflop", "frontier", "losses", "contours", "residuals", "envelope")


def grid(scale=1.0):
    """Three budgets of five sizes, on a law, with a ripple in place of noise."""
    rows = []
    for c in (1e12 * scale, 4e12 * scale, 1.6e13 * scale):
        for i, times in enumerate((0.2, 0.45, 1.0, 2.2, 5.0)):
            n = times * (c / 120) ** 0.5
            d = c / 6 / n
            loss = 1.2 + 90 / n**0.42 + 160 / d**0.4 + 0.004 * (-1) ** i
            row = {"run": f"r{len(rows)}", "params": n, "tokens": d, "flops": c, "loss": loss}
            rows.append({**row, "status": "done"})
    return rows


@pytest.fixture(scope="module")
def source():
    return figures.Source(grid())


@pytest.fixture(scope="module")
def drawn(source):
    return figures.draw(OF_ROWS, source, "paper")


def pixels(figure, place):
    figure.savefig(place, format="png", dpi=60)
    return np.asarray(Image.open(place).convert("RGB"), float)


def distance(a, b):
    return np.inf if a.shape != b.shape else float(np.sqrt(np.mean((a - b) ** 2)))


# `ISOFLOP_GOLDEN=write pytest tests/report/test_plots.py` draws them again; look at them then.
@pytest.mark.parametrize("name", ["isoflop", "frontier", "contours"])
def test_a_figure_looks_as_it_did(name, drawn, tmp_path):
    place = GOLDEN / f"{name}.png"
    if os.environ.get("ISOFLOP_GOLDEN") == "write":
        drawn[name].savefig(place, format="png", dpi=60)
    golden = Image.open(place)
    version = golden.info["Software"].split(",")[0].removeprefix("Matplotlib version")
    if version != matplotlib.__version__:
        pytest.skip(f"drawn by matplotlib {version}: other versions draw type differently")
    golden = np.asarray(golden.convert("RGB"), float)
    assert distance(pixels(drawn[name], tmp_path / "now.png"), golden) < TOLERANCE
    with style.looking("paper"):
        other = figures.FIGURES[name](figures.Source(grid()[:-1]))
    assert distance(pixels(other, tmp_path / "other.png"), golden) > TOLERANCE


@pytest.mark.parametrize("name", OF_ROWS)
def test_axes_and_legends_say_what_is_drawn(name, drawn):
    axes = [a for a in drawn[name].axes if a.get_label() != "<colorbar>"]
    assert all(a.get_xlabel() for a in axes)
    assert any(a.get_ylabel() for a in axes)
    labels = [text.get_text() for legend in drawn[name].legends for text in legend.get_texts()]
    assert labels
    assert len(labels) == len(set(labels))
    words = " ".join(a.get_xlabel() + a.get_ylabel() for a in drawn[name].axes)
    assert re.search(r"FLOPs|parameters", words)


@pytest.mark.parametrize("name", OF_ROWS)
def test_labels_of_ticks_do_not_touch(name, drawn):
    figure = drawn[name]
    figure.draw_without_rendering()
    boxes = [shown_labels(axes.xaxis) for axes in figure.axes if axes.get_xlabel()]
    assert boxes
    for labels in boxes:
        assert len(labels) > 1
        assert all(a.x1 + 2 < b.x0 for a, b in pairwise(labels))


def test_labels_have_the_finest_steps_for_which_there_is_room():
    counts = []
    for wide in (1.2, 2.0, 6.0):
        with style.looking("paper", wide), style.sheet(6.4, 4.2) as sheet:
            (axes,) = sheet.panels
            axes.plot([3e4, 2.5e6], [1, 2])
            axes.set_xscale("log")
            style.log_ticks(axes.xaxis)
        sheet.figure.draw_without_rendering()
        labels = shown_labels(axes.xaxis)
        assert all(a.x1 < b.x0 for a, b in pairwise(labels))
        counts.append(len(labels))
    assert counts == [2, 5, 6]


def shown_labels(axis):
    """The boxes of the labels within the axis, from the left."""
    low, high = axis.get_view_interval()
    shown = [t.label1 for t in axis.get_major_ticks() if low <= t.get_loc() <= high]
    return sorted((label.get_window_extent() for label in shown), key=lambda box: box.x0)


@pytest.mark.parametrize("look", ["paper", "talk"])
def test_the_size_of_a_look_is_that_of_the_figure_and_its_type(look, source):
    (figure,) = figures.draw(["isoflop"], source, look).values()
    assert figure.get_figwidth() == style.LOOKS[look].width
    assert figure.axes[0].xaxis.label.get_fontsize() == style.LOOKS[look].size
    wide = figures.draw(["isoflop"], source, look, 7.0)["isoflop"]
    assert wide.get_figwidth() == 7.0
    assert wide.axes[0].xaxis.label.get_fontsize() == style.LOOKS[look].size


def test_a_look_scales_marks_and_changes_no_colors(source):
    page, talk = (figures.draw(["isoflop"], source, look)["isoflop"] for look in ("page", "talk"))
    pairs = list(zip(page.axes[0].lines, talk.axes[0].lines, strict=True))
    assert len(pairs) > 10
    for a, b in pairs:
        assert a.get_color() == b.get_color() or np.allclose(a.get_color(), b.get_color())
        assert b.get_linewidth() == pytest.approx(1.4 * a.get_linewidth())
        assert b.get_markersize() == pytest.approx(1.4 * a.get_markersize())


def test_panels_of_a_narrow_column_are_below_each_other(source):
    def places(width):
        panels = figures.draw(["frontier"], source, "paper", width)["frontier"].axes
        return [panel.get_subplotspec().get_geometry()[:2] for panel in panels]

    assert set(places(3.3)) == {(3, 1)}
    assert set(places(7.0)) == {(1, 3)}
    talk = figures.draw(["frontier"], source, "talk")["frontier"].axes  # a slide is wide
    assert talk[0].get_subplotspec().get_geometry()[:2] == (1, 3)


def test_the_curves_of_a_valley_go_through_its_runs_and_its_minimum(drawn, source):
    lines = drawn["isoflop"].axes[0].lines
    solid = [line for line in lines if line.get_linestyle() == "-" and len(line.get_xdata()) > 2]
    assert len(solid) == 3
    rows = sorted(source.rows, key=lambda row: (row["flops"], row["params"]))
    for i, line in enumerate(solid):
        x, y = (np.asarray(values, float) for values in line.get_data())
        for row in rows[5 * i : 5 * i + 5]:
            assert np.interp(row["params"], x, y) == pytest.approx(row["loss"], rel=1e-6)
        assert not np.allclose(np.interp(rows[5 * i]["params"], x, y), rows[5 * i + 1]["loss"])
    minima = source.analysis("isoflop").document["methods"]["akima"]["minima"]
    (stars,) = [line for line in lines if line.get_marker() == "*" and len(line.get_xdata())]
    assert list(stars.get_xdata()) == pytest.approx([m["params"] for m in minima])
    for minimum, line in zip(minima, solid, strict=True):
        assert float(np.min(line.get_ydata())) == pytest.approx(minimum["loss"], rel=2e-2)


def test_labels_of_contours_lie_on_their_lines_inside_the_axes(drawn):
    figure = drawn["contours"]
    figure.canvas.draw()
    axes = figure.axes[0]
    box = axes.get_window_extent()
    labels = [text for text in axes.texts if re.fullmatch(r"[\d.]+", text.get_text())]
    assert len(labels) >= 4
    (frontier,) = [line for line in axes.lines if line.get_label() == "efficient frontier"]
    crossed = axes.transData.transform(frontier.get_xydata())
    for text in labels:
        own = text.get_window_extent()
        assert box.x0 < own.x0
        assert own.x1 < box.x1
        assert box.y0 < own.y0
        assert own.y1 < box.y1
        assert not any(own.contains(x, y) for x, y in crossed)
        assert len(text.get_text()) <= 4  # a round number


@pytest.mark.parametrize(("scale", "near"), [(1.0, False), (1e9, True)])
def test_a_law_of_others_is_drawn_where_it_is_near(scale, near):
    figure = figures.draw(["frontier"], figures.Source(grid(scale), law="isoflop"))["frontier"]
    labels = [line.get_label() for line in figure.axes[0].lines]
    assert ("Kaplan et al. 2020" in labels) == near
    assert any(label.startswith("Hoffmann") for label in labels)


@pytest.mark.parametrize("look", [*style.LOOKS])
@pytest.mark.parametrize("name", ["frontier", "losses", "envelope"])
def test_labels_of_flops_do_not_touch(name, look, source):
    figure = figures.draw([name], source, look)[name]
    figure.canvas.draw()
    for axes in figure.axes:
        low, high = axes.get_xlim()
        ticks = axes.xaxis.get_major_ticks()
        inside = [t.label1.get_window_extent() for t in ticks if low <= t.get_loc() <= high]
        inside = sorted((box for box in inside if box.width > 1), key=lambda box: box.x0)
        assert all(a.x1 < b.x0 for a, b in pairwise(inside))


def test_a_minimum_has_the_interval_of_its_tokens_too(drawn, source):
    point = {"params": 100.0, "tokens": 2000.0, "interval": [50.0, 200.0], "sizes": 5}
    spans = [
        decision_figures._closed_interval(point, key)
        for key in ("params", "tokens", "tokens_per_param")
    ]
    assert spans == [(50, 200), (1000, 4000), (5, 80)]  # 6 N D is the same at all of them
    assert decision_figures._closed_interval({**point, "interval": [50.0, None]}, "tokens") is None


def colors(figure):
    return {
        line.get_label().partition(":")[0]: line.get_color()
        for axes in figure.axes
        for line in axes.get_lines()
        if line.get_marker() not in ("", "None", "*")
    }


def test_a_group_has_its_color_in_every_figure():
    rows = [{**row, "group": group} for row in grid() for group in ("gru", "transformer")]
    fits = {
        name: {"rows": [r for r in rows if r["group"] == name], "analysis": None}
        for name in ("transformer", "gru")  # in the order of the rows, or in another
    }
    several = colors(sweep_figures.group_curves(fits, "params", "nats per token"))
    points = {name: [(1e4, 2.0, 0.1, 2)] for name in sorted(fits)}
    scores = sweep_figures.score_curves(points, "params", "accuracy")
    looks = style.group_look(fits)
    assert {several[name] for name in fits} == {color for color, _ in looks.values()}
    for name in fits:
        assert several[name] == looks[name][0]
        index = sorted(fits).index(name)
        (line, *_) = scores.axes[0].containers[index]
        assert line.get_color() == looks[name][0]


def test_labels_of_the_multiverse_do_not_overlap():
    choices = {
        "params": ["params", "params_non_embedding", "params_matmul"],
        "drop_top_loss": ["0", "1"],
        "objective": ["huber_log", "mse_log"],
        "huber_delta": ["0.0001", "0.001", "0.01", "None"],
        "sizes": ["all", "without the smallest"],
    }
    by_choice = {k: {v: {"exponent": 0.5} for v in values} for k, values in choices.items()}
    section = {"by_choice": by_choice, "universes": [{"exponent": 0.4}, {"exponent": 0.6}]}
    section["spread"] = {"exponent": {"median": 0.5}}
    with style.looking("paper"):
        figure = decision_figures.multiverse_spread({"multiverse": section, "law": "chinchilla"})
    figure.canvas.draw()
    labels = figure.axes[1].get_yticklabels()
    words = [label.get_text() for label in labels]
    assert len(words) == len(set(words)) == 12  # "None" of Huber's delta is least squares
    assert not any("params" in w or "drop_top" in w or "mse_log" in w for w in words)
    boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: box.y0)
    assert all(a.y1 <= b.y0 for a, b in pairwise(boxes))


def test_a_caption_states_what_its_figure_found(source):
    laws = {"frontier": "chinchilla", "contours": "chinchilla", "losses": "chinchilla"}
    laws |= {"isoflop": "isoflop", "envelope": "envelope"}
    said = {kind: captions.finding(kind, source.analysis(law).document)
            for kind, law in laws.items()}  # fmt: skip
    last = source.analysis("chinchilla").document["predictions"][-1]
    assert said["frontier"] == said["contours"]
    assert f"At {flops_text(6 * last['params'] * last['tokens'])} FLOPs (6 N D)" in said["frontier"]
    exponent = source.analysis("isoflop").document["methods"]["akima"]["params_exponent"]
    assert f"C^{exponent:.2f} (" in said["isoflop"]
    assert "E = " in said["losses"]
    assert re.match(r"\d of 15 runs lie on the hull", said["envelope"])
    found = source.analysis("chinchilla").document
    spread = found["noise"]["value"]
    assert f"about the law by {spread:.2%}" in captions.finding("residuals", found)
    assert captions.finding("curves", found) == ""


@pytest.mark.parametrize("name", ["frontier", "isoflop", "losses", "residuals"])
@pytest.mark.parametrize("width", [3.3, 7.0])
def test_no_label_is_cut_in_large_type(source, name, width):
    with style.looking("talk", width):
        figure = figures.FIGURES[name](source)
    figure.draw_without_rendering()
    page = figure.bbox
    labels = [axis.label for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]
    labels += [text for legend in figure.legends for text in legend.get_texts()]
    boxes = [label.get_window_extent() for label in labels if label.get_text()]
    assert all(b.x0 > -1 and b.x1 < page.width + 1 and b.y0 > -1 and b.y1 < page.height + 1
               for b in boxes)  # fmt: skip
    assert style._broken("tokens per parameter $D^*/N^*$", 10) == "tokens per\nparameter\n$D^*/N^*$"


def test_a_short_logarithmic_axis_has_few_round_ticks(source):
    with style.sheet(3, 3) as sheet:
        (axes,) = sheet.panels
        axes.plot([1, 2], [16, 37])
        axes.set_yscale("log")
        style.log_ticks(axes.yaxis)
    assert [*axes.yaxis.get_major_locator()()] == [20, 25, 30, 35]


def test_a_law_that_rises_with_size_has_no_lowest_loss_of_its_tokens(source):
    rows = [{**row, "loss": 0.2 * row["params"] ** 0.1 + row["tokens"] ** -0.5} for row in grid()]
    rising, falling = scaling.analyze("chinchilla", rows, {}), source.analysis("chinchilla")
    for analysis, known in ((rising, False), (falling, True)):
        _, (_, by_tokens), _ = fit_figures._least_losses(analysis.fit)
        assert np.isfinite(by_tokens).all() == known


def test_the_frontier_of_minima_has_its_band(source):
    document = source.analysis("isoflop").document
    figure = decision_figures.frontier(document["minima"], document)
    labels = figure.axes[0].get_legend_handles_labels()[1]
    assert {"95 % band", "their 95 % intervals"} <= set(labels)
    low, high = document["frontier"][0], document["frontier"][-1]
    budgets = [m["flops"] for m in document["minima"]]
    assert low["flops"] < min(budgets) < max(budgets) < high["flops"]
    bare = decision_figures.frontier(document["minima"], {**document, "frontier": []})
    assert "95 % band" not in bare.axes[0].get_legend_handles_labels()[1]


def pdf_of(tmp_path, *flags):
    out = tmp_path / "x.pdf"
    assert command.main([f"--out={out}", *flags]) == 0
    return out


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return workdir(tmp_path_factory.mktemp("runs"), grid())


def test_a_pdf_holds_its_fonts_and_has_the_width_that_was_asked_for(place, tmp_path):
    data = pdf_of(tmp_path, f"--runs={place}", "--figure=isoflop", "--width=84mm").read_bytes()
    assert b"/FontFile2" in data
    assert b"/Type3" not in data
    box = re.search(rb"/MediaBox \[ *0 0 ([\d.]+) ", data)
    assert box
    assert float(box[1]) == pytest.approx(84 / 25.4 * 72, abs=0.1)
    figure = isoflop.plot(place, "isoflop", style="paper")
    figure.axes[0].set_title("mine")
    figure.savefig(tmp_path / "later.pdf")  # by whoever has it
    assert b"/FontFile2" in (tmp_path / "later.pdf").read_bytes()
    assert b"/Type3" not in (tmp_path / "later.pdf").read_bytes()
    with matplotlib.rc_context({"pdf.fonttype": 3}):  # what matplotlib does by itself
        plain = matplotlib.figure.Figure()
        plain.text(0.5, 0.5, "words")
        plain.savefig(tmp_path / "plain.pdf")
    assert b"/Type3" in (tmp_path / "plain.pdf").read_bytes()


def test_the_same_figure_is_the_same_file(place, tmp_path):
    flags = f"--runs={place}", "--figure=curves"
    first = pdf_of(tmp_path, *flags).read_bytes()
    assert pdf_of(tmp_path, *flags).read_bytes() == first
    assert pdf_of(tmp_path, *flags, "--width=4in").read_bytes() != first


@pytest.mark.parametrize(("suffix", "begins"), [("svg", b"<?xml"), ("png", b"\x89PNG")])
def test_several_figures_are_files_of_their_own(suffix, begins, place, tmp_path, capsys):
    out = tmp_path / "new" / f"x.{suffix}"
    assert command.main([f"--runs={place}", "--figure=curves,envelope", f"--out={out}"]) == 0
    written = [out.with_stem("x-curves"), out.with_stem("x-envelope")]
    assert capsys.readouterr().out.split() == [str(path) for path in written]
    assert [path.read_bytes()[: len(begins)] for path in written] == [begins] * 2
    assert not out.exists()
    if suffix == "png":  # as printers ask for, at the width of a column
        with Image.open(written[0]) as image:
            assert image.size[0] == pytest.approx(3.3 * 300, abs=1)


def test_a_law_without_a_floor_leaves_the_runs_half_of_their_panel():
    bent = [{**row, "loss": 40 * row["tokens"] ** -0.2} for row in grid()]
    panels = figures.draw(["losses"], figures.Source(bent), "page")["losses"].axes[:3]
    losses = [row["loss"] for row in bent]
    low, high = (np.log(end) for end in panels[0].get_ylim())
    assert np.log(max(losses) / min(losses)) > 0.45 * (high - low)
    assert low < np.log(min(losses))
    least = min(float(np.min(at.get_ydata())) for axes in panels for at in axes.lines)
    assert np.log(least) < low  # the twin: the law itself goes further down


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--figure=isoflops"], "figure: 'isoflops'; expected one of isoflop, frontier"),
        (["--figure=curves,curves"], "figure: 'curves' is given twice"),
        (["--figure="], "--figure: is empty"),
        (["--figure=isoflop", "--style=poster"], "style: 'poster'; expected one of page, paper"),
        (["--figure=isoflop", "--width=3.3"], "width: '3.3'; expected a number and one of in"),
        (["--figure=isoflop", "--width=nanin"], "width: 'nanin'; expected a number"),
        (["--figure=isoflop", "--width=0.1in"], "width: 0.1; expected a number of inches"),
        (["--figure=isoflop", "--out=x.gif"], "--out=x.gif: expected a file ending in .png, .svg"),
        (["--figure=ladder"], "ladder: nothing is registered"),
        (["--figure=transfer"], "transfer: no .*transfer.json; isoflop transfer"),
        (["--figure=loss"], "loss: parameters and tokens both vary"),
        (["--figure=contours", "--law=isoflop"], "contours: is no figure of the law isoflop"),
        (["--figure=isoflop", "--where=flops<2e12"], "isoflop: 1 budget with at least 4 sizes"),
        (["--figure=isoflop", "--where=flops<2"], "no finished runs with --where=flops<2"),
        (["--figure=contours", "--law=chinchila"], "chinchila"),
    ],
)
def test_what_cannot_be_drawn_is_refused_and_nothing_is_written(flags, says, place, tmp_path):
    given = [f"--runs={place}", f"--out={tmp_path / 'x.png'}", *flags]
    with pytest.raises(BadInput, match=says) as refused:
        command.main(given)
    assert refused.value.exit_code == 2
    assert not list(tmp_path.iterdir())


def test_each_figure_that_cannot_be_drawn_has_its_reason(place, tmp_path):
    with pytest.raises(BadInput) as refused:
        command.main([f"--runs={place}", "--figure=curves,ladder,loss", f"--out={tmp_path}/x.pdf"])
    assert [line.split(":")[0] for line in refused.value.problems] == ["ladder", "loss"]


def test_a_table_has_no_curves(tmp_path):
    with pytest.raises(BadInput, match="curves: is of a workdir"):
        isoflop.plot(grid(), "curves")
    assert isoflop.plot(grid(), "isoflop").axes
    assert "isoflop" in METHODS


def test_groups_that_share_no_law_are_told_apart():
    rows = [{**row, "optimizer": "adamw"} for row in grid()]
    rows += [{**row, "run": f"m{row['run']}", "optimizer": "muon"} for row in grid()]
    with pytest.raises(BadInput, match=r"2 groups .*optimizer.*--where=optimizer==VALUE"):
        isoflop.plot(rows, "isoflop")
    assert isoflop.plot(rows, "isoflop", where="optimizer==muon").axes


def test_a_document_that_is_no_check_of_transfer_is_refused(tmp_path):
    (tmp_path / "transfer.json").write_text('{"rate": {"rule": 3}}')
    with pytest.raises(BadInput, match="not what isoflop transfer writes"):
        isoflop.plot(tmp_path, "transfer")
    (tmp_path / "transfer.json").write_text('{"rate": {}}')
    with pytest.raises(BadInput, match="has no stage 'regret'"):
        isoflop.plot(tmp_path, "regret")


def test_pairs_of_parameters_are_shown_without_the_outermost_resamples(source):
    analysis = source.analysis("chinchilla")
    figure = fit_figures.draw_figures(analysis, "pairs")["pairs"]
    samples = analysis.fit.samples
    last = [axes for axes in figure.axes if axes.axison][-1]  # of the last parameter alone
    low, high = last.get_xlim()
    inside = (samples[:, -1] >= low) & (samples[:, -1] <= high)
    assert 0.97 < inside.mean() <= 1
    assert low < analysis.fit.best[-1] < high


@pytest.mark.parametrize(
    ("flops", "words"),
    [
        (9.98e10, "$10^{11}$"),
        (1e11, "$10^{11}$"),
        (9.4e10, r"$9.4\times10^{10}$"),
        (1.4e12, r"$1.4\times10^{12}$"),
        (2e12, r"$2\times10^{12}$"),
        (1e-3, "$10^{-3}$"),
    ],
)
def test_flops_are_rounded_before_their_power_of_ten(flops, words):
    assert style.flops_text(flops) == words
