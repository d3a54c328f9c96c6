"""The page is whole, self-contained and escaped, and says what is missing."""

import html
import json
import re
import shutil
import subprocess
import xml.dom.minidom

import numpy as np
import pytest

from research.errors import BadInput
from research.io import files, worker_processes
from research.report import build, fit_text, sweep_figures, text
from research.runs import schema
from research.runs.directory import RunDirectory
from research.runs.table import write_table
from research.training.tasks import task_class
from tests.scaling.test_minima import BUDGETS, iso_rows
from tests.scaling.test_scaling import noisy


def workdir(path, rows, name="a sweep"):
    for row in rows:
        with RunDirectory(path, row["run"]) as directory:
            directory.write_once("config.json", {})
            for step in range(0, 100, 10):
                directory.append(step=step, tokens=step * 100, train_loss=3.0 - step / 100)
            directory.append(step=100, tokens=10_000, loss=row["loss"] or 1.0)
            facts = {"name": name, "tokens": 10_000, "flops": 1e12, "seed": 0, "lr": 0.01} | row
            if row.get("status", "done") in ("done", "diverged"):
                directory.write_result({"status": "done", "reason": "", **facts})
            else:
                directory.write_once(
                    "launch.json", {"facts": {k: v for k, v in facts.items() if k != "status"}}
                )
                directory.record_failure("RuntimeError: <b>fire</b>")
    return path


def without_scripts(page):
    """What is left of a page for a reader who runs none."""
    return re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """What a report of nine runs returns, and where it is."""
    place = workdir(tmp_path_factory.mktemp("plain"), noisy(0))
    return build.write_report(place), place


def test_a_sweep_gives_a_page_with_its_figures_fit_and_table(plain):
    result, place = plain
    page = (place / "report.html").read_text()
    assert without_scripts(page).count("<svg") == 3
    assert "was predicted as" in page
    assert "r8" in page
    for name in ("loss", "curves", "residuals"):
        assert (place / "figures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        xml.dom.minidom.parse(str(place / "figures" / f"{name}.svg"))
    shown = text.text_summary(result)
    assert "L(N) = E + A / N^alpha" in shown
    assert str(place / "report.html") in shown


def test_the_page_fetches_nothing(plain):
    page = (plain[1] / "report.html").read_text()
    still = without_scripts(page)
    assert not re.findall(r"(?:src|href)=[\"'](?!#|data:)", still)
    assert "<script" not in still
    assert "@import" not in still
    assert still.count("url(") == still.count("url(#")
    assert len(page) < 1e6  # with Vega, packed


@pytest.mark.slow
def test_the_page_of_a_large_sweep_stays_small(tmp_path):
    rng, rows = np.random.default_rng(0), []
    for n in np.geomspace(1e4, 1e7, 20):
        for d in n * np.geomspace(2, 500, 10):
            loss = (1.7 + 400 / n**0.34 + 410 / d**0.28) * np.exp(0.004 * rng.normal())
            facts = {
                "params": int(n),
                "tokens": int(d),
                "unique_tokens": int(d),
                "flops": 7 * n * d,
            }
            rows.append({"run": f"r{len(rows)}", "loss": loss, **facts})
    build.write_report(workdir(tmp_path, rows), every_way=True)
    page = (tmp_path / "report.html").read_text()
    assert len(page) < 2e6
    assert "data:image/png" in page  # what has many marks
    assert "<svg" in page


def test_missing_runs_are_counted_first_and_named_below(tmp_path):
    rows = noisy(0)
    rows[0] |= {"loss": None, "status": "failed"}
    result = build.write_report(workdir(tmp_path, rows))
    page = (tmp_path / "report.html").read_text()
    assert page.index("1 of 9 runs is not done") < page.index("<svg")
    assert page.index("<svg") < page.index("Launch again") < page.index("Run r0 failed")
    assert result["fits"][""]["document"]["dropped"] == [{"run": "r0", "reason": "failed"}]


@pytest.mark.parametrize("count", [1, 3])
def test_too_few_runs_are_shown_without_a_law(tmp_path, count):
    result = build.write_report(workdir(tmp_path, noisy(0)[:count]))
    assert result["fits"][""]["document"] is None
    assert "no law" in text.text_summary(result)
    page = without_scripts((tmp_path / "report.html").read_text())
    assert page.index("No law was fitted") < page.index("of params to fit") < page.index("<svg")
    assert "to which no law was fitted" in page
    # Nothing stands below these headings, and no line is on the figure.
    for absent in ("<h2>Data", "<h2>How far to trust it", "<details>", "95 % band"):
        assert absent not in page
    assert not (tmp_path / "fit.json").exists()


def test_a_law_is_in_the_caption_where_there_is_one(plain):
    page = without_scripts((plain[1] / "report.html").read_text())
    assert "to which no law was fitted" not in page
    assert "95 % band" in page


def test_rates_at_one_size_are_drawn_against_the_rate(tmp_path):
    rows = [{**row, "params": 10_000} for row in noisy(0)]
    tried = [{**row, "lr": 0.01 * 1.5**i} for i, row in enumerate(rows)]
    labels = []
    for some in (tried, rows):
        some = [{**row, "status": "done"} for row in some]
        fits = {"": {"rows": some, "analysis": None, "document": None}}
        figure = build._sweep_figures(some, {row["run"]: [] for row in some}, fits, "params")
        labels.append(figure["loss"].axes[0].get_xlabel())
    assert labels == ["learning rate", "parameters $N$"]


def two_groups(changes=()):
    rows = [r | {"group": "transformer"} for r in noisy(0)]
    rows += [r | {"run": f"g{r['run']}", "group": "gru", "loss": 1.3 * r["loss"]} for r in noisy(1)]
    return [row | dict(changes) for row in rows]


@pytest.mark.slow
def test_groups_have_a_law_each_and_one_plot(tmp_path):
    result = build.write_report(workdir(tmp_path, two_groups()))
    assert set(result["fits"]) == {"transformer", "gru"}
    for name in result["fits"]:
        assert (tmp_path / f"fit-{name}.json").exists()
    one, other = (fit["document"] for fit in result["fits"].values())
    assert one["n_points"] == other["n_points"]
    assert one["params"] != other["params"]
    shown = text.text_summary(result)
    assert shown.count("L(N) = E + A / N^alpha") == 2
    assert "loss at" in shown  # the two side by side
    assert "Fitted law of gru" in (tmp_path / "report.html").read_text()
    assert not (tmp_path / "fit.json").exists()
    page = (tmp_path / "report.html").read_text()
    words, *_ = files.read_json(tmp_path / "fit-compare.json")["compare"]["words"]
    assert words.startswith("transformer needs 0.")  # gru, the first by name, is 30 % worse
    assert "the parameters of gru" in words
    assert words in page
    assert words in shown
    alone = build.write_report(workdir(tmp_path / "alone", noisy(0)))
    assert (tmp_path / "alone" / "fit.json").exists()
    assert "loss at" not in text.text_summary(alone).replace("the loss at", "")
    assert not (tmp_path / "alone" / "fit-compare.json").exists()


def test_a_run_that_failed_before_it_said_what_it_is_makes_no_group_of_its_own():
    rows = [{"run": "a", "group": "gru"}, {"run": "b"}]
    assert [len(members) for members in text.rows_by_group(rows).values()] == [2]
    assert len(text.rows_by_group([{"group": "gru"}, {"group": "cnn"}])) == 2


def test_the_law_is_against_the_first_column_in_which_runs_differ():
    rows = [{"status": "done", "params": 5, "train_examples": n, "tokens": 9} for n in (1, 2)]
    assert text.varying_column(rows) == "train_examples"
    assert text.varying_column([row | {"train_examples": 1} for row in rows]) == "params"
    assert text.varying_column([row | {"params": i} for i, row in enumerate(rows)]) == "params"


GAIN = {"name": "gain", "heading": "<gain>", "format": ".2f", "shown": ["page"]}


def test_classifiers_show_accuracy_and_the_confusion_of_the_best_run(tmp_path):
    rows = [
        row
        | {
            "accuracy": i / 20,
            "gain": 3.0 + i,
            "metrics": [*schema.declaration(task_class("classification").METRICS), GAIN],
            "confusion": [[i, 1], [2, 20 - i]],
            "class_names": ["<b>one</b>", "two"],
            **{f"class_{kind}": [0.25, 0.5] for kind in ("precision", "recall", "f1")},
        }
        for i, row in enumerate(noisy(0))
    ]
    build.write_report(workdir(tmp_path, rows))
    page = (tmp_path / "report.html").read_text()
    assert f"Run {rows[-1]['run']}, the most accurate: accuracy {(len(rows) - 1) / 20:.4f}" in page
    assert "<b>one</b>" not in page
    assert "<h2>Held-out &lt;gain&gt;</h2>" in page
    assert not (tmp_path / "figures" / "metric_macro_f1.png").exists()  # no run has it
    for name in ("metric_accuracy", "metric_gain", "confusion"):
        assert (tmp_path / "figures" / f"{name}.png").stat().st_size > 1000


@pytest.mark.parametrize(("expected", "verdict"), [(0.4, "inside"), (3.0, "outside")])
def test_the_exponent_is_compared_with_the_one_that_the_data_were_made_for(expected, verdict):
    document = {"params": {"alpha": 0.41}, "intervals": {"alpha": [0.3, None]}}
    words = fit_text.expected_exponent_sentence([{"expected_exponent": expected}], document)
    document["intervals"]["alpha"] = [0.3, 0.5]
    assert verdict in fit_text.expected_exponent_sentence(
        [{"expected_exponent": expected}], document
    )
    assert "0.41 (0.3 to open)" in words
    assert fit_text.expected_exponent_sentence([{}], document) == ""


def test_no_runs_is_bad_input(tmp_path):
    with pytest.raises(BadInput, match="no directory"):
        build.write_report(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(BadInput, match="no runs yet"):
        build.write_report(tmp_path)


def test_the_same_records_give_the_same_files(plain, tmp_path):
    first = (plain[1] / "report.html").read_bytes()
    for seed, same in ((0, True), (1, False)):
        place = workdir(tmp_path / str(seed), noisy(seed))
        build.write_report(place)
        assert ((place / "report.html").read_bytes() == first) == same


def test_smoothing_keeps_a_constant_and_has_no_bias_at_the_start():
    np.testing.assert_allclose(sweep_figures._smooth(np.full(50, 2.0)), 2.0)
    assert sweep_figures._smooth(np.arange(50.0))[0] == 0


def test_a_spread_over_seeds_is_of_runs_that_differ_in_the_seed_alone():
    def row(params, tokens, score, seed):
        return {"run": f"{params}-{tokens}-{seed}", "status": "done", "seed": seed,
                "params": params, "tokens": tokens, "accuracy": score}  # fmt: skip

    budgets = [row(1e5, 1e6, 0.5, 0), row(1e5, 3e6, 0.7, 0), row(2e5, 5e5, 0.4, 0)]
    points = text.score_statistics(budgets, "params", "accuracy")
    assert [(x, mean, runs) for x, mean, _, runs in points] == [
        (1e5, 0.5, 1),
        (1e5, 0.7, 1),
        (2e5, 0.4, 1),
    ]
    figure = sweep_figures.score_curves({"": points}, "params", "accuracy")
    assert figure.axes[0].get_ylabel() == "accuracy"
    assert figure.axes[0].lines[0].get_linestyle() == "None"

    seeds = [row(1e5, 1e6, 0.5, 0), row(1e5, 1e6, 0.7, 1), row(2e5, 5e5, 0.4, 0)]
    points = text.score_statistics(seeds, "params", "accuracy")
    assert points[0] == (1e5, pytest.approx(0.6), pytest.approx(0.2 / 2**0.5), 2)
    figure = sweep_figures.score_curves({"": points}, "params", "accuracy")
    assert "standard deviation over seeds" in figure.axes[0].get_ylabel()
    assert figure.axes[0].lines[0].get_linestyle() == "-"


# In a browser.

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
WINDOW = "--window-size=500,900"
PROBE = """<script>
setTimeout(() => {
  const out = document.createElement("pre");
  const drawn = document.querySelector("#explore svg").getBoundingClientRect();
  const text = () => document.querySelector(".chart .told").textContent;
  const slider = document.querySelector("#explore input[type=range]");
  const before = text();
  slider.value = slider.max;
  slider.dispatchEvent(new Event("input"));
  setTimeout(() => {
    out.id = "probe";
    out.textContent = JSON.stringify([before, text(), drawn.right, innerWidth]);
    document.body.appendChild(out);
  }, 500);
}, 1500);
</script></body>"""


def in_browser(page, folder, probe=PROBE, *flags):
    """What a probe reads of the page, by default the slider's text before and after it was moved to
    its end; and the console."""
    pytest.importorskip("altair")
    if not CHROMIUM:
        pytest.skip("Chromium is not installed")
    path = folder / "probe.html"
    before, _, after = page.rpartition("</body>")  # Vega's own code speaks of it too
    path.write_text(before + probe + after)
    quiet = ("quic", "gpu", "background-networking", "component-update", "sync", "extensions")
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--no-first-run", "--enable-logging=stderr",
            *(f"--disable-{name}" for name in quiet), f"--user-data-dir={folder / 'profile'}",
            *flags,
            "--virtual-time-budget=6000", "--dump-dom", path.as_uri(),
        ],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    found = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, console
    return json.loads(html.unescape(found[1])), console


def test_the_slider_changes_the_prediction_in_a_browser(plain, tmp_path):
    page = (plain[1] / "report.html").read_text()
    (before, after, right, wide), console = in_browser(page, tmp_path, PROBE, WINDOW)
    assert not console
    assert wide / 2 < right <= wide == 500
    losses = [float(re.search(r"loss (\d\.\d+)", text)[1]) for text in (before, after)]
    assert losses[1] < losses[0] - 0.01


@pytest.mark.slow
def test_a_grid_of_sizes_and_tokens_has_its_surface_and_its_minima(tmp_path, monkeypatch):
    rows = [{**row, "status": "done"} for row in iso_rows(0.001, sizes=7, budgets=BUDGETS[:4])]
    result = build.write_report(workdir(tmp_path, rows))
    monkeypatch.setattr(worker_processes, "MOST", 1)
    with_another = build.write_report(tmp_path, out=tmp_path / "again")["files"]
    assert {name: path.read_bytes() for name, path in with_another.items()} == {
        name: path.read_bytes() for name, path in result["files"].items()
    }
    assert set(result["surfaces"][""]) == {"chinchilla", "isoflop", "envelope"}
    page = (tmp_path / "report.html").read_text()
    for name in ("chinchilla_contours", "chinchilla_frontier", "isoflop_isoflop"):
        assert (tmp_path / "figures" / f"{name}.png").stat().st_size > 5000
    assert "best for" in page
    assert len(page) < 2e6
    (before, after, *_), console = in_browser(page, tmp_path)
    assert not console
    sizes = [re.search(r"N\* ([\d.]+[kMBT])", text)[1] for text in (before, after)]
    assert sizes[0] != sizes[1]


@pytest.mark.slow
def test_a_report_of_some_runs_is_written_elsewhere(tmp_path):
    rows = [{**row, "tag": "old" if row["run"] == "r0" else "base"} for row in noisy(0)]
    place = workdir(tmp_path / "w", rows)
    before = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in place.rglob("*")}
    result = build.write_report(place, where="tag==base", out=tmp_path / "out")
    write_table(place, tmp_path / "out")
    assert before == {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in place.rglob("*")}
    there = {p.name for p in (tmp_path / "out").iterdir()}
    assert there >= {"report.html", "fit.json", "figures", "table.csv", "table.parquet"}
    assert [row["run"] for row in rows if row["tag"] == "base"] == [
        row["run"] for row in result["rows"]
    ]
    words = f"--where=tag==base: {len(rows) - 1} of {len(rows)} runs"
    assert words in result["notes"]
    assert words in (tmp_path / "out" / "report.html").read_text()
    with pytest.raises(BadInput, match="--where=tag==none: no run meets it"):
        build.write_report(place, where="tag==none")
    assert not (place / "report.html").exists()
    build.write_report(place)
    assert (place / "report.html").exists(), "the twin: without, it lies in the workdir"


@pytest.mark.slow
def test_scores_of_tasks_have_their_laws_on_the_page(tmp_path):
    rows = noisy(0)
    rows = [row | {"flops": row["params"] * 6e4, "tokens": 10_000} for row in rows]
    place = workdir(tmp_path, rows)
    build.write_report(place)
    assert "From compute to" not in (place / "report.html").read_text()
    for row in rows:
        score = 0.25 + 0.7 / (1 + np.exp(8 * (row["loss"] - 1.9)))
        entry = {"accuracy": score, "chance": 0.25, "recipe": {}, "of": "x"}
        path = place / "runs" / row["run"] / "scores.json"
        entries = {"copy": entry, "same": entry | {"recipe": {"seed": row["run"]}}}
        path.write_text(json.dumps(entries))
    build.write_report(place)
    page = without_scripts((place / "report.html").read_text())
    assert page.count("<h2>From compute to score/") == 2
    assert "chance 0.25" in page
    assert "FLOPs to score: accuracy(C) = floor" in html.unescape(page)
    assert "Left out: --downstream=score/same: the scores were not measured alike" in page
    assert '<th scope="col">by the loss</th>' in page
    assert '<th scope="col">score/copy</th>' in page
