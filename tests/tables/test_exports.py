"""Exports as trackers, pandas and spreadsheets write them, beyond words and numbers: settings with
a prefix, switches that say how a run ended, cells that hold objects, headers of two lines, columns
of one name, logarithms, and files that are no tables at all."""

import io
import json
import re

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from research.errors import BadInput
from research.scaling import checks
from research.scaling.options import Options
from research.tables import replicates, states, table
from research.tables.curves import curve_warning, last_rows
from tests.tables.test_tables_from_elsewhere import GRID, LINES, as_csv, is_grid, read, usable

NAMES = "params=params.n,tokens=params.d,loss=metrics.loss"
COUNTS = ("params", "tokens", "loss")


def mlflow_csv(more, header):
    """The data frame of mlflow.search_runs, with further columns."""
    lines = [[f"{i:032x}", f"file:///a/{i}", *line, *more(i)] for i, line in enumerate(LINES)]
    names = ("run_id", "artifact_uri", "params.n", "params.d", "metrics.loss", *header)
    return as_csv(lines, names)


def test_words_of_settings_that_mlflow_prefixes_with_params_stay_words(tmp_path):
    def more(i):
        return ["adamw" if i % 2 else "muon"]

    rows = usable(read(tmp_path / "t.csv", mlflow_csv(more, ["params.optimizer"]), NAMES))[0]
    assert {row["params.optimizer"] for row in rows} == {"adamw", "muon"}
    counted = read(tmp_path / "t.csv", mlflow_csv(lambda i: ["12"], ["params_non_embedding"]),
                   NAMES)  # fmt: skip
    assert {row["params_non_embedding"] for row in usable(counted)[0]} == {12.0}


@pytest.mark.parametrize("name", ["params.lr", "params_lr", "user_attrs_lr", "config/lr", "lr"])
def test_a_setting_with_the_prefix_of_a_tracker_is_no_seed(name):
    rows = [
        {"run": f"{n}-{k}", "params": n, "tokens": d, "loss": y + 0.01 * k, "value": y + 0.01 * k,
         name: 10.0**-k, "params_non_embedding": 0.9 * n, "artifact_uri": f"file:///{n}-{d}-{k}"}
        for n, d, y in GRID
        for k in (2, 3)
    ]  # fmt: skip
    assert replicates.varied_within(rows, ("params", "tokens")) == [name]
    seeds = [{**row, name: 1e-3} for row in rows]
    assert not replicates.varied_within(seeds, ("params", "tokens"))
    assert len(replicates.replicate_groups(seeds, ("params", "tokens"))) == len(GRID)


@pytest.mark.parametrize(
    ("name", "value", "bad"),
    [
        *(("sys/failed", "True", True), ("sys/failed", "False", False)),  # Neptune
        *(("hasCrashed", "true", True), ("hasCrashed", False, False), ("running", True, True)),
        *(("ExitCode", "1:0", True), ("ExitCode", "0:9", True), ("ExitCode", "0:0", False)),
        *(("exit_code", 137, True), ("exit_code", 0, False), ("exit_code", "", False)),
        *(("diverged", 1, True), ("diverged", "", False), ("failed_steps", "1", False)),
    ],
)
def test_a_switch_says_how_a_run_ended(name, value, bad, tmp_path):
    assert states.ended_badly(name, value) == bad
    lines = [[*line, value if i == 3 else ""] for i, line in enumerate(LINES)]
    rows = read(tmp_path / "t.csv", as_csv(lines, (*COUNTS, name)))
    assert is_grid(rows, len(GRID) - bad)
    assert any("1 rows that the run failed" in note for note in rows.notes) == bad


def test_cells_that_hold_objects_are_columns(tmp_path):
    """As W&B's own example of an export writes them."""
    lines = [
        [i, repr({"loss": y, "_step": 3}), json.dumps({"model": {"n": n}, "d": d, "lr": None})]
        for i, (n, d, y) in enumerate(GRID)
    ]
    names = "params=config.model.n,tokens=config.d,loss=summary.loss"
    assert is_grid(read(tmp_path / "t.csv", as_csv(lines, ("", "summary", "config")), names))
    rows = [{"config": {"n": n, "d": d}, "summary": {"loss": y}} for n, d, y in GRID]
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    names = "params=config.n,tokens=config.d,loss=summary.loss"
    assert is_grid(read(tmp_path / "t.parquet", buffer.getvalue(), names))
    words = [[*line, "{not an object"] for line in LINES]
    assert is_grid(read(tmp_path / "t.csv", as_csv(words, (*COUNTS, "note"))))


def test_a_header_of_two_lines_is_one_and_told(tmp_path):
    merged = as_csv([["", *COUNTS], *([f"r{i}", *x] for i, x in enumerate(LINES))],
                    ("run", "model", "model", "eval"))  # fmt: skip
    rows = read(tmp_path / "t.csv", merged)
    assert is_grid(rows)
    assert rows[0]["run"] == "r0"
    assert any("lines 1 and 2 are both of the header" in note for note in rows.notes)
    lines = [[f"{n / 1e6:g}", f"{d / 1e9:g}", f"{y:.5f}"] for n, d, y in GRID]
    units = as_csv([["M", "B", "nats"], *lines])
    rows = read(tmp_path / "t.csv", units, "params=params (M),tokens=tokens (B),loss=loss (nats)")
    assert is_grid(rows)
    first_failed = as_csv([["r0", "OOM", "OOM", "OOM"], *([f"r{i}", *x] for i, x in
                          enumerate(LINES))], ("run", *COUNTS))  # fmt: skip
    assert is_grid(read(tmp_path / "t.csv", first_failed))


def test_columns_of_one_name_are_one_where_they_are_equal_and_numbered_where_not(tmp_path):
    assert is_grid(read(tmp_path / "t.csv", as_csv([[*x, x[2]] for x in LINES], (*COUNTS, "loss"))))
    twice = as_csv([[*x, "9"] for x in LINES], (*COUNTS, "loss"))
    with pytest.raises(BadInput, match=r"no column 'loss'.*perhaps --columns='loss=loss\.1'"):
        usable(read(tmp_path / "t.csv", twice))
    rows = read(tmp_path / "t.csv", twice, "loss=loss.1")
    assert is_grid(rows)
    assert rows.notes == ["2 columns are named 'loss': they are loss.1 and loss.2 here"]
    third = as_csv([[*x, "9", "8"] for x in LINES], (*COUNTS, "loss", "loss.1"))
    (told,) = read(tmp_path / "t.csv", third, "loss=loss.2").notes
    assert told == "2 columns are named 'loss': they are loss.2 and loss.3 here"
    assert is_grid(read(tmp_path / "t.csv", as_csv([[*x, 1, 2] for x in LINES],
                                                   (*COUNTS, "note", "note"))))  # fmt: skip


def test_logarithms_and_perplexities_are_undone_by_columns(tmp_path):
    lines = [[f"{np.log10(n):.8g}", f"{np.log(d):.8g}", f"{np.exp(y):.8g}"] for n, d, y in GRID]
    text = as_csv(lines, ("log10_params", "ln tokens", "ppl"))
    names = "params=10^log10_params,tokens=e^ln tokens,loss=ln(ppl)"
    assert is_grid(read(tmp_path / "t.csv", text, names))
    assert is_grid(read(tmp_path / "t.csv", text, names.replace("e^ln tokens", "exp(ln tokens)")))
    with pytest.raises(BadInput, match=r"a logarithm.*'params=10\^log10_params'.*\*1'"):
        read(tmp_path / "t.csv", text, "params=log10_params")
    assert read(tmp_path / "t.csv", text, "params=log10_params*1")[0]["params"] < 10
    with pytest.raises(BadInput, match=r"params=10\^log10_params,tokens=e\^ln tokens"):
        usable(read(tmp_path / "t.csv", text))
    rows = read(tmp_path / "t.csv", as_csv([["7", "20", "-1"]], ("n", "d", "y")), "loss=ln(y)")
    assert np.isnan(rows[0]["loss"])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.csv", b"PK\x03\x04\x14\x00\x06", "a spreadsheet or an archive under another name"),
        ("t.csv", b"PAR1\x15\x04", "call it .parquet"),
        ("t.tsv", b"\n<!DOCTYPE html>\n<html></html>", "a page of HTML"),
        ("t.json", b"version https://git-lfs.github.com/spec/v1\nsize 3\n", "a pointer of Git LFS"),
    ],
)
def test_a_file_that_is_something_else_than_its_name_says_is_told(name, content, words, tmp_path):
    with pytest.raises(BadInput, match=words):
        read(tmp_path / name, content)


def test_tables_with_runs_or_sizes_as_columns_are_told(tmp_path):
    turned = as_csv([[name, *cells] for name, cells in zip(COUNTS, zip(*LINES))],
                    ("run", *[f"r{i}" for i in range(len(LINES))]))  # fmt: skip
    with pytest.raises(BadInput, match="the table looks transposed"):
        usable(read(tmp_path / "t.csv", turned))
    wide = as_csv([["1e9", 4, 3, 2], ["4e9", 3, 2, 1]], ("tokens", "20M", "50M", "100M"))
    with pytest.raises(BadInput, match=r"a column for each of 20M, 50M, 100M.*df\.melt"):
        usable(read(tmp_path / "t.csv", wide))
    with pytest.raises(BadInput) as refused:
        usable(read(tmp_path / "t.csv", as_csv(LINES, ("params", "tokens", "y"))))
    assert "transposed" not in str(refused.value)
    assert "a column for each" not in str(refused.value)


def test_a_table_with_a_row_for_each_quantity_is_told(tmp_path):
    """Twin: a column of words beside a number, which name no quantity that is missing."""
    for names, told in ((COUNTS, True), (("N", "D", "val_loss"), True), (("a", "b", "c"), False)):
        long = [[f"r{i}", name, x] for i, line in enumerate(LINES) for name, x in zip(names, line)]
        path = tmp_path / "t.csv"
        with pytest.raises(BadInput) as refused:
            usable(read(path, as_csv(long, ("run", "metric", "value"))))
        assert "transposed" not in str(refused.value)
        pivot = "df.pivot(index=['run'], columns='metric', values='value').reset_index()"
        assert (pivot in str(refused.value)) == told


def test_a_line_break_in_a_header_is_a_space(tmp_path):
    path = tmp_path / "t.csv"
    rows = read(path, as_csv(LINES, ("params\n(total)", "tokens", "val\r\nloss")),
                "params=params (total),loss=val loss")  # fmt: skip
    assert is_grid(rows)


def test_a_table_without_a_header_is_told(tmp_path):
    with pytest.raises(
        BadInput, match=r"first line is numbers alone \(20000000, 1000000000, "
    ) as e:
        usable(read(tmp_path / "t.csv", as_csv(LINES[1:], LINES[0])))
    assert "a column for each" not in str(e.value)


@pytest.mark.parametrize("around", [("\\begin{tabular}{rr}\n", "\\end{tabular}"), ("", "")])
def test_a_table_in_latex_is_told(around, tmp_path):
    """Twin: a comma for &, and a name that holds that sign."""
    lines = [" & ".join(line) + " \\\\\n" for line in (COUNTS, *LINES)]
    with pytest.raises(BadInput, match="a table in LaTeX"):
        read(tmp_path / "t.txt", around[0] + "".join(lines) + around[1])
    assert is_grid(read(tmp_path / "t.csv", as_csv([[*x, "R&D"] for x in LINES],
                                                   (*COUNTS, "team"))))  # fmt: skip


def told(rows):
    return checks.check_table(rows, COUNTS, Options(), "chinchilla", False)


@pytest.mark.parametrize(
    ("n", "d", "y", "words"),
    [
        (1, 1e-9, 1, r"if tokens are in billions, --columns='tokens=tokens\*1e\+09'"),
        (1e-6, 1, 1, r"if params are in millions, --columns='params=params\*1e\+06'"),
        (1e-6, 1e-9, 1, "if these are millions or billions"),
        (1, 1, 10, r"if they are perplexities, --columns='loss=ln\(loss\)'"),
    ],
)
def test_counts_of_two_units_and_losses_of_no_model_are_told(n, d, y, words):
    rows = [{"run": "r", "params": a * n, "tokens": b * d, "loss": c * y} for a, b, c in GRID]
    assert sum(re.search(words, line) is not None for line in told(rows)) == 1
    assert not told([{"run": "r", "params": a, "tokens": b, "loss": c} for a, b, c in GRID])


def test_points_of_curves_are_told_without_a_column_run():
    sizes = (2e7, 5e7, 1e8)
    rows = [
        {"run": f"row {i}", "unnamed": True, "params": n, "tokens": k * 1e8, "loss": 4 - 0.1 * k}
        for i, (n, k) in enumerate((n, k) for n in sizes for k in range(1, 9))
    ]
    assert "evenly spaced tokens" in curve_warning(rows)[0]
    planned = [{**row, "tokens": 2.0 ** (row["tokens"] / 1e8) * 1e8} for row in rows]
    assert not curve_warning(planned)
    named = [{**row, "Name": f"m{row['params']:g}"} for row in planned]
    assert "3 runs have several rows" in curve_warning(named)[0]
    assert sum(last_rows(named)) == 3
    assert all(last_rows(planned))


def test_a_product_of_columns_whose_header_says_a_unit_is_told(tmp_path):
    """Twins: a factor of one's own, and a header without a unit."""
    (tmp_path / "t.csv").write_text("run,N (M),D/N,loss\na,20,30,3.5\nb,40,30,3.4\n")
    (tmp_path / "u.csv").write_text("run,N,D/N,loss\na,20,30,3.5\nb,40,30,3.4\n")

    def told(name, tokens):
        return table.notes_of(table.read_runs(tmp_path / name, {"tokens": tokens}))

    (note,) = told("t.csv", "N (M)*D/N")
    assert note.startswith("tokens=N (M)*D/N takes the cells of 'N (M)' as they are")
    assert "--columns='tokens=N (M)*D/N*1e+06'" in note
    assert not told("t.csv", "N (M)*D/N*1e6")
    assert not told("t.csv", "N (M)*D/N*1")
    assert not told("u.csv", "N*D/N")


@pytest.mark.parametrize(
    ("header", "flag"),
    [
        ("params,steps,tokens_per_step,loss", "--columns='tokens=steps*tokens_per_step'"),
        ("params,train.step,batch_size,seq_len,loss", "'tokens=train.step*batch_size*seq_len'"),
        ("params,step,batch_size,loss", None),
    ],
)
def test_tokens_are_found_in_steps(header, flag, tmp_path):
    (tmp_path / "t.csv").write_text(f"{header}\n{','.join('9' * len(header.split(',')))}\n")
    with pytest.raises(BadInput, match="no column 'tokens'") as found:
        table.usable_rows(table.read_runs(tmp_path / "t.csv"), ("params", "tokens", "loss"))
    assert (flag in str(found.value)) if flag else ("--columns" not in str(found.value))


@pytest.mark.parametrize(
    ("cell", "rest"),
    [
        ("3.68 ± 0.02", "± 0.02"),
        ("3.684(12)", "(12)"),
        ("3.68 nats", "nats"),
        ("3.68*", "*"),
        ("3.68B†", "†"),
        ("3.68 [2]", "[2]"),
    ],
)
def test_a_number_with_its_error_or_unit_is_refused_with_what_to_do(cell, rest, tmp_path):
    (tmp_path / "t.csv").write_text(f"params,tokens,loss\n1e6,1e8,{cell}\n2e6,1e8,{cell}\n")
    with pytest.raises(BadInput, match=r"a number alone is expected, 3\.68") as found:
        table.usable_rows(table.read_runs(tmp_path / "t.csv"), ("params", "tokens", "loss"))
    assert f"put {rest!r} into another column" in str(found.value)


@pytest.mark.parametrize(("header", "factor"), [("macs", 2.0), ("GMACs", 2e9), ("fmacro", 1.0)])
def test_a_multiplication_and_an_addition_are_two_flops(header, factor, tmp_path):
    (tmp_path / "t.csv").write_text(f"params,tokens,loss,{header}\n1e6,1e8,3,3e5\n2e6,1e8,3,6e5\n")
    rows = table.read_runs(tmp_path / "t.csv", {"flops": header})
    assert [float(row["flops"]) for row in rows] == [3e5 * factor, 6e5 * factor]
    assert any(f"times {factor:g}" in note for note in table.notes_of(rows)) == (factor != 1)
