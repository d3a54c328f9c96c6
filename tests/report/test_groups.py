"""A report keeps apart what is not comparable and what is not of its sweep, and says what each
group was made from."""

import math
import re

import pytest

from research import scaling
from research.errors import BadInput
from research.io import files
from research.report import build, fit_figures, html, provenance, text
from research.tables import replicates
from tests.report.test_report import without_scripts, workdir
from tests.runs.test_settings import launched
from tests.scaling.test_scaling import noisy
from tests.tables.test_comparable import OWN

MADE = {"jax": "0.9.0", "versions": {"jax": "0.9.0"}, "device_kind": "cpu", "devices": 2}


def own(**changed):
    return [{**r, **OWN, **MADE, "tokens": 10_000} for r in noisy(0)] + [
        {**r, **OWN, **MADE, "tokens": 10_000, "run": f"o{r['run']}", **changed} for r in noisy(1)
    ]


def page_of(path):
    return without_scripts((path / "report.html").read_text())


def test_runs_on_changed_data_share_no_law_and_no_seeds(tmp_path):
    rows = own(data_digest="b" * 64)
    result = build.write_report(workdir(tmp_path, rows))
    names = ["data_digest aaaaaaaaaaaa", "data_digest bbbbbbbbbbbb"]
    assert sorted(result["fits"]) == names
    assert result["compared"] is None  # of other held-out data
    assert [fit["document"]["n_points"] for fit in result["fits"].values()] == [
        len(noisy(0)) - 1, len(noisy(1)) - 1
    ]  # fmt: skip
    words = f"data_digest ({'a' * 12}: {len(noisy(0))} rows, {'b' * 12}: {len(noisy(1))} rows)"
    for shown in (page_of(tmp_path), text.text_summary(result)):
        assert words in shown
        assert "do not measure the same thing" in shown
    assert len(list(tmp_path.glob("fit-*.json"))) == 2


def test_runs_of_other_switches_are_compared_with_the_switch_as_a_column(tmp_path):
    result = build.write_report(workdir(tmp_path, own(**{"optim.clip": "none"})))
    groups = result["compared"].document["compare"]["groups"]
    assert set(groups) == {"clip=a number", "clip=none"}
    assert "no law:" not in text.text_summary(result)
    page = page_of(tmp_path)
    told, *again = re.findall(r"(clip=none|clip=a number) needs ([\d.]+) times the", page)
    assert again == [told, told]  # what opens the page; its figure, and the section
    assert page.index(" needs ") < page.index("<figure")
    assert text.text_summary(result).splitlines()[1].startswith(f"{told[0]} needs ")
    # The figure says the same of the same group, which it moves by what is over that.
    figure = fit_figures.draw_figures(result["compared"], "compare")["compare"]
    labels = [line.get_label() for line in figure.axes[1].lines]
    ((name, factor, needs, interval),) = re.findall(
        r"(.*): × ([\d.]+) \(needs ([\d.]+) times; (95 %: [\d.]+ to [\d.]+)\)", "\n".join(labels)
    )
    assert (name, needs) == told
    assert f"({interval})" in page
    assert float(factor) == pytest.approx(1 / float(needs), rel=0.01)
    assert any(label.endswith(": × 1") for label in labels)  # that of which it is told


def test_runs_are_mixed_where_that_is_asked_for_and_the_page_says_so(tmp_path):
    rows = own(data_digest="b" * 64)
    result = build.write_report(workdir(tmp_path, rows), mix=True)
    assert list(result["fits"]) == [""]
    document = files.read_json(tmp_path / "fit.json")
    assert document["mixed"]["data_digest"]["a" * 64] == len(noisy(0))
    assert document["n_points"] == len(rows) - 2
    assert "rows that are not comparable share this law (--mix): data_digest" in page_of(tmp_path)


@pytest.mark.slow
def test_runs_that_are_no_points_of_the_sweep_are_left_out_and_told(tmp_path):
    rows = own(data_digest="b" * 64)
    workdir(tmp_path, rows)
    of_sweep = [row["run"] for row in rows if row["run"].startswith("o")]
    launched(tmp_path, *of_sweep)
    result = build.write_report(tmp_path)
    assert sorted(row["run"] for row in result["rows"]) == sorted(of_sweep)
    assert len(result["fits"]) == 1
    told = f"{len(noisy(0))} runs of the workdir are left out"
    assert told in page_of(tmp_path)
    assert told in text.text_summary(result)
    everything = build.write_report(tmp_path, all_runs=True)
    assert len(everything["rows"]) == len(rows)
    assert len(everything["fits"]) == 2
    assert told not in page_of(tmp_path)


def test_a_sweep_none_of_whose_runs_has_begun_has_no_report(tmp_path):
    workdir(tmp_path, own())
    launched(tmp_path, "another")
    with pytest.raises(BadInput, match="no runs yet") as error:
        build.write_report(tmp_path)
    assert "--all_runs" in str(error.value)


@pytest.mark.slow
def test_every_group_says_what_it_was_made_from(tmp_path):
    rows = own(code="d" * 16, versions={"jax": "0.9.1"})
    result = build.write_report(workdir(tmp_path, rows))
    page = page_of(tmp_path)
    for words in ("c" * 16, "d" * 16, "jax 0.9.0", "jax 0.9.1", "text stdlib aaaaaaaaaaaa"):
        assert words in page, words
    shown = text.text_summary(result)
    assert (
        f"runs {len(noisy(0))}, data text stdlib aaaaaaaaaaaa, code {'c' * 16}, jax 0.9.0" in shown
    )


def test_provenance_counts_what_differs_inside_of_a_group():
    rows = [{"status": "done", "commit": f"{i // 2}" * 40, **MADE} for i in range(9)]
    table = {line[0]: line[1] for line in provenance.provenance_table({"": rows})}
    assert table["runs"] == "9"
    assert table["commit"] == (
        "000000000000 (2 runs); 111111111111 (2 runs); 222222222222 (2 runs); 2 more"
    )
    few = {line[0]: line[1] for line in provenance.provenance_table({"": rows[:3]})}
    assert few["commit"] == "000000000000 (2 runs); 111111111111 (1 run)"
    assert table["jax"] == "0.9.0"
    assert "code" not in table
    unfinished = [*rows, {"status": "failed"}]
    (head, first, *_) = provenance.provenance_table({"x": unfinished})
    assert (head, first) == (["", "x"], ["runs", "10, 9 done"])


def test_settings_that_vary_are_columns_of_both_tables(tmp_path):
    rows = own()
    for i, row in enumerate(rows):
        row["optim.optimizer.b2"] = (0.9, 0.99)[i % 2]
        row["optim.optimizer.b1"] = 0.9
    result = build.write_report(workdir(tmp_path, rows))
    for shown in (page_of(tmp_path), text.text_summary(result)):
        assert "optim.optimizer.b2" in shown
        assert "optim.optimizer.b1" not in shown


@pytest.mark.slow
def test_groups_whose_rates_were_tuned_are_compared_at_the_best_of_each(tmp_path):
    """B is as good as A, and was also tried at rates that are bad for it."""
    rows = [{**row, "lr": 0.01} for row in own(**{"optim.clip": "none"})]
    bad = [
        {**row, "run": f"x{row['run']}", "lr": 0.1, "loss": 1.05 * row["loss"]}
        for row in rows if row.get("optim.clip") == "none"
    ]  # fmt: skip
    needs, own_law = {}, {}
    for name, some in (("tuned", [*rows, *bad]), ("plain", rows)):
        result = build.write_report(workdir(tmp_path / name, some))
        section = result["compared"].document["compare"]
        (needs[name],) = [g["needs"]["value"] for g in section["groups"].values() if "needs" in g]
        told = "each group is compared at its best lr for each size and length" in section["words"]
        assert told == (name == "tuned")
        untuned = [x for x in section["words"] if x.startswith("each group has one learning rate")]
        assert bool(untuned) == (name == "plain")
        assert ("Only the best setting of each" in page_of(tmp_path / name)) == (name == "tuned")
        own_law[name] = result["fits"]["clip=none"]["document"]
        if name == "tuned":  # the twin: a law through all that was tried
            every = scaling.analyze(
                "power", result["rows"], {"against": "params"}, compare_by="group"
            )
            pooled = every.document["compare"]["groups"]
            (needs["all"],) = [g["needs"]["value"] for g in pooled.values() if "needs" in g]
    assert needs["tuned"] == pytest.approx(needs["plain"], rel=0.05)
    assert abs(math.log(needs["all"] / needs["plain"])) > 0.1
    # The group's own law is that of the best rates, too.
    left_out = {name: {row["run"] for row in law["dropped"]} for name, law in own_law.items()}
    assert left_out["tuned"] >= {row["run"] for row in bad}
    assert not left_out["plain"]


def test_what_was_tuned_is_chosen_among_and_what_was_counted_is_not():
    rows = [{"run": f"{i}", "params": 1e4, "tokens": 1e6, "loss": 2.0 + i} for i in range(3)]
    for name, values, chosen in (
        ("lr", (0.01, 0.02, 0.03), "cell"),
        ("seed", (0, 1, 2), None),
        ("unique_tokens", (1e6, 2e5, 1e5), None),
    ):
        some = [{**row, name: value} for row, value in zip(rows, values, strict=True)]
        assert replicates.best_of(some, ("params", "tokens")) == chosen, name
    longer = [{**row, "tokens": 1e6 * (1 + i), "lr": 0.01 * i} for i, row in enumerate(rows, 1)]
    assert replicates.best_of(longer, ("params",)) is None


def test_what_many_groups_say_is_folded_below_what_compares_them():
    parts = [f"<p>{i}</p>" for i in range(html.MOST_PARTS + 1)]
    assert html._folded("each", parts)[0].startswith("<details><summary>each")
    assert html._folded("each", parts, opened=False) == parts  # they open the page
    assert html._folded("each", parts[1:]) == parts[1:]
