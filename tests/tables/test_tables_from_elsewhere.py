"""Tables as other tools and people write them: states, missing values, numbers, units, formats.
Every one gives the law that it was made from, a refusal with its reason, or a warning."""

import csv
import gzip
import io
import json
import math
import os
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from experiments import fit as command
from research.errors import BadInput
from research.scaling import analyze
from research.scaling.flags import _parse_pairs
from research.tables import numbers, states, table, where
from research.tables.columns import header_unit, split_pairs

TRUTH = {"E": 1.7, "A": 400.0, "B": 900.0, "alpha": 0.34, "beta": 0.33}
CASES = Path(os.environ.get("ISOFLOP_CASES", Path(__file__).parents[3] / "shared" / "cases"))
SIZES, LENGTHS = (2e7, 5e7, 1e8, 2e8, 4e8, 8e8, 1.6e9), (1e9, 4e9, 1.6e10, 6.4e10)


def loss_at(n, d):
    return TRUTH["E"] + TRUTH["A"] * n ** -TRUTH["alpha"] + TRUTH["B"] * d ** -TRUTH["beta"]


GRID = [(n, d, loss_at(n, d)) for n in SIZES for d in LENGTHS]
LINES = [[f"{n:.0f}", f"{d:.0f}", f"{loss:.6f}"] for n, d, loss in GRID]


def as_csv(lines, header=("params", "tokens", "loss"), separator=","):
    out = io.StringIO()
    csv.writer(out, delimiter=separator, lineterminator="\n").writerows([header, *lines])
    return out.getvalue()


def read(path, content, columns="", **options):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return table.read_runs(path, _parse_pairs("columns", columns), **options)


def usable(rows, needed=("params", "tokens", "loss")):
    return table.usable_rows(rows, needed)


def is_grid(rows, count=28):
    """Whether the rows are the grid that they were made of, or `count` of its rows."""
    found = {(row["params"], row["tokens"]): row["loss"] for row in usable(rows)[0]}
    assert len(found) == count
    for (n, d), loss in found.items():
        assert loss == pytest.approx(loss_at(n, d), rel=2e-3)
    return True


# Words.


@pytest.mark.parametrize(
    "word",
    [
        *("failed", "FAILED", "crashed", "Killed", "running", "preempted"),  # W&B, MLflow
        *("PRUNED", "TrialState.PRUNED", "FAIL", "WAITING", "ERROR", "PENDING"),  # Optuna, Ray Tune
        *(
            "TIMEOUT",
            "CANCELLED by 1000",
            "CANCELLED+",
            "OUT_OF_ME+",
            "NODE_FAIL",
            "OOM",
            "TO",
            "PD",
        ),
        *("In progress", "Aborted", "OOMKilled", "JOB_STATE_FAILED", "upstream_failed", "held"),
        *("diverged", "unfinished"),
    ],
)
def test_a_run_that_is_not_done_is_left_out_whatever_tracker_says_so(word):
    rows = [{"params": 1.0, "loss": 2.0}, {"params": 2.0, "loss": 1.5, "status": word}]
    kept, dropped = usable(rows, ("params", "loss"))
    assert [row["params"] for row in kept] == [1.0]
    assert dropped == [{"run": "row 2", "reason": word}]


@pytest.mark.parametrize(
    "word",
    [
        *("finished", "FINISHED", "COMPLETE", "TERMINATED", "COMPLETED", "done", "Succeeded", "CD"),
        *("", None, "NA", "TrialState.COMPLETE", " ok "),
    ],
)
def test_a_run_that_is_done_is_fitted_whatever_tracker_says_so(word):
    rows = [{"params": 1.0, "loss": 2.0, "status": word}]
    assert len(usable(rows, ("params", "loss"))[0]) == 1


def test_a_word_that_nobody_knows_is_left_out_until_the_user_says_that_it_is_done():
    rows = [{"params": 1.0, "loss": 2.0}, {"params": 2.0, "loss": 1.5, "status": "zombie"}]
    kept, dropped = usable(rows, ("params", "loss"))
    assert len(kept) == 1
    assert "'zombie' is not known (--finished=zombie)" in dropped[0]["reason"]
    assert len(table.usable_rows(rows, ("params", "loss"), finished=["zombie"])[0]) == 2


def test_a_column_called_state_is_the_state_and_that_is_reported(tmp_path):
    lines = [[*line, "crashed" if i == 3 else "finished"] for i, line in enumerate(LINES)]
    rows = read(tmp_path / "t.csv", as_csv(lines, ("params", "tokens", "loss", "State")))
    assert len(usable(rows)[0]) == len(GRID) - 1
    assert any("'State' is taken for the state" in note for note in rows.notes)
    us = [[*line, "Ohio" if i == 3 else "Utah"] for i, line in enumerate(LINES)]
    rows = read(tmp_path / "t.csv", as_csv(us, ("params", "tokens", "loss", "State")))
    assert is_grid(rows)


@pytest.mark.parametrize(
    "word", ["", "NA", "N/A", "None", "null", "-", "—", "#N/A", "n.a.", "<NA>"]
)
def test_a_missing_value_leaves_out_its_row_alone(word, tmp_path):
    lines = [[*line[:2], word] if i == 5 else line for i, line in enumerate(LINES)]
    rows = read(tmp_path / "t.csv", as_csv(lines))
    assert is_grid(rows, len(GRID) - 1)
    assert usable(rows)[1][0]["run"] == "line 7"


@pytest.mark.parametrize("word", ["OOM", "diverged", "#DIV/0!", "nan", "inf"])
def test_a_run_without_a_loss_is_left_out_with_what_its_cell_says(word, tmp_path):
    lines = [[*line[:2], word] if i == 5 else line for i, line in enumerate(LINES)]
    rows = read(tmp_path / "t.csv", as_csv(lines))
    assert is_grid(rows, len(GRID) - 1)
    assert word in usable(rows)[1][0]["reason"]


# Numbers.


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("20M", 2e7), ("1.5B", 1.5e9), ("1.5 B", 1.5e9), ("3e9", 3e9), ("125m", 1.25e8)),
        *(("20,000,000", 2e7), ("1_000_000", 1e6), ("20 000 000", 2e7), ("20'000'000", 2e7)),
        *(("2.5×10^9", 2.5e9), ("2.5·10⁹", 2.5e9), ("2.5 x 10^9", 2.5e9), ("10^18", 1e18)),
        *(("2.5*10**9", 2.5e9), ("45%", 0.45), ("20M params", 2e7), ("3 EFLOPs", 3e18)),
        *(("10 PF-days", 8.64e20), ("1,000.5", 1000.5), ("~20M", 2e7), ("−1.5", -1.5)),
        *(("20\u202f000\u202f000", 2e7), (" 7 ", 7.0), ("1.2E+21 FLOPs", 1.2e21), (3, 3.0)),
    ],
)
def test_numbers_are_read_as_people_write_them(text, value):
    assert numbers.parse_number(text) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    "text",
    ["", "abc", "M", "1/3", "3.1.2", "3.2±0.1", "2020-01-02", "1.35e", "3,97", "0x10", "1 5", True,
     None, [1], "nan", "1e999", "1,00,000"],
)  # fmt: skip
def test_what_is_no_number_is_none(text):
    assert numbers.parse_number(text) is None


def test_a_decimal_comma_is_read_by_option_and_refused_where_it_may_be_thousands(tmp_path):
    def german(text):
        return text.replace(",", "_").replace(".", ",").replace("_", ".")

    lines = [[german(f"{n:,.0f}"), german(f"{d:,.0f}"), german(f"{y:.3f}")] for n, d, y in GRID]
    text = as_csv(lines, separator=";")
    with pytest.raises(BadInput, match=r"line 2: params is '20\.000\.000'.*--decimal_comma"):
        usable(read(tmp_path / "t.csv", text))
    assert is_grid(read(tmp_path / "t.csv", text, decimal_comma=True))
    lines = [[*line[:2], german(f"{y:.3f}")] for line, (_, _, y) in zip(LINES, GRID)]
    text = as_csv(lines, separator=";")
    with pytest.raises(BadInput, match=r"which may be .* or .*: give --decimal_comma or --no-"):
        usable(read(tmp_path / "t.csv", text))
    assert is_grid(read(tmp_path / "t.csv", text, decimal_comma=True))
    as_thousands = usable(read(tmp_path / "t.csv", text, decimal_comma=False))[0]
    assert min(row["loss"] for row in as_thousands) > 1000
    with pytest.raises(BadInput, match=r"--decimal_comma: no number of .* has a comma"):
        read(tmp_path / "t.csv", as_csv(LINES), decimal_comma=True)


def test_thousands_are_grouped_where_no_decimal_comma_is_possible(tmp_path):
    lines = [[f"{n:,.0f}", f"{d:,.0f}", f"{y:.5f}"] for n, d, y in GRID]
    assert is_grid(read(tmp_path / "t.csv", as_csv(lines)))


# Units.


@pytest.mark.parametrize(
    ("name", "of", "factor"),
    [
        *(
            ("params (M)", "params", 1e6),
            ("tokens (B)", "tokens", 1e9),
            ("tokens_B", "tokens", 1e9),
        ),
        *(("tokens [billions]", "tokens", 1e9), ("params in millions", "params", 1e6)),
        *(("throughput/total_gflops", "flops", 1e9), ("compute (PF-days)", "flops", 8.64e19)),
        *(("FLOPs (1e18)", "flops", 1e18), ("train TFLOPs", "flops", 1e12)),
        *(("FLOPs (P)", "flops", 1e15), ("flops [T]", "flops", 1e12), ("FLOPs", "flops", None)),
        *(("GFLOPs (total)", "flops", 1e9), ("FLOPs (total)", "flops", None)),
        *(("mparams", "params", 1e6), ("params_m", "params", 1e6), ("nParamsM", "params", 1e6)),
        *(("n_params_millions", "params", 1e6), ("tokens_b", "tokens", 1e9)),
        *(("Btokens", "tokens", 1e9), ("billions_of_tokens", "tokens", 1e9)),
        *(("GFLOPs", "flops", 1e9), ("train_pflops_total", "flops", 1e15)),
        *(("params", "params", None), ("flops", "flops", None), ("num_params", "params", None)),
        *(("param_b_init", "params", None), ("tokens_seen", "tokens", None)),
        *(("model_params", "params", None), ("flops_6nd", "flops", None)),
        *(("gflops_per_second", "flops", None), ("N", "params", None), ("D", "tokens", None)),
        *(("tokens_per_param", "tokens", None), ("TFLOP/s", "flops", None), ("M", "params", 1e6)),
    ],
)
def test_the_unit_of_a_header_is_read(name, of, factor):
    unit = header_unit(name, of)
    assert (unit.factor if unit else None) == factor


def test_units_of_headers_are_applied_and_reported_and_the_user_has_the_last_word(tmp_path):
    lines = [[f"{n / 1e6:g}", f"{d / 1e9:g}", f"{y:.5f}"] for n, d, y in GRID]
    text = as_csv(lines, ("params (M)", "tokens (B)", "val loss"))
    rows = read(tmp_path / "t.csv", text, "params=params (M),tokens=tokens (B),loss=val loss")
    assert is_grid(rows)
    assert any("params is 'params (M)' times 1e+06" in note for note in rows.notes)
    names = "params=params (M)*1e6,tokens=1e9*tokens (B),loss=val loss"
    rows = read(tmp_path / "t.csv", text, names)
    assert is_grid(rows)
    assert not rows.notes
    rows = read(tmp_path / "t.csv", text, names.replace("*1e6", "*1"))
    assert max(row["params"] for row in rows) == 1600
    with pytest.raises(BadInput, match=r"perhaps --columns='params=params \(M\)\*1e\+06,tokens="):
        usable(read(tmp_path / "t.csv", text))
    scaled = as_csv(LINES, ("params (M)", "tokens (B)", "loss"))
    rows = read(tmp_path / "t.csv", scaled, "params=params (M),tokens=tokens (B)")
    assert is_grid(rows)
    assert sum("look scaled already" in note for note in rows.notes) == 2


@pytest.mark.parametrize(
    ("params", "tokens"),
    [("mparams", "tokens_b"), ("params_m", "btokens"), ("n_params_millions", "tokens_bn")],
)
def test_a_unit_in_a_word_of_a_header_is_never_lost(tmp_path, params, tokens):
    """Twin: the same table with headers that say no unit, whose numbers are as they are."""
    lines = [[f"{n / 1e6:g}", f"{d / 1e9:g}", f"{y:.5f}"] for n, d, y in GRID]
    text, names = as_csv(lines, (params, tokens, "loss")), f"params={params},tokens={tokens}"
    rows = read(tmp_path / "t.csv", text, names)
    assert is_grid(rows)
    assert any(f"params is {params!r} times 1e+06, as its header says" in n for n in rows.notes)
    with pytest.raises(BadInput, match=rf"params={params}\*1e\+06,tokens={tokens}\*1e\+09"):
        usable(read(tmp_path / "t.csv", text))
    plain = read(tmp_path / "t.csv", as_csv(lines, ("N", "D", "loss")), "params=N,tokens=D")
    assert max(float(row["params"]) for row in plain) == 1600
    assert not plain.notes


def test_a_rate_is_not_taken_for_compute(tmp_path):
    text = as_csv([[6 * n * d, n, y] for n, d, y in GRID], ("TFLOP/s", "params", "loss"))
    with pytest.raises(BadInput, match=r"a rate, .*--columns='flops=TFLOP/s\*seconds'"):
        read(tmp_path / "t.csv", text, "flops=TFLOP/s")
    assert read(tmp_path / "t.csv", text, "flops=TFLOP/s*1")


def test_columns_are_products_of_columns_whose_names_may_hold_the_signs(tmp_path):
    header = ("N", "D/N", "val*loss, final")
    lines = [[f"{n:.0f}", f"{d / n:.9g}", f"{y:.6f}"] for n, d, y in GRID]
    rows = read(tmp_path / "t.csv", as_csv(lines, header),
                "params=N,tokens=N*D/N,loss=`val*loss, final`")  # fmt: skip
    assert is_grid(rows)
    for wrong, words in (("tokens=N*Q", "no column 'Q'"), ("tokens=N*", "times or divided")):
        with pytest.raises(BadInput, match=words):
            read(tmp_path / "t.csv", as_csv(lines, header), wrong)
    assert list(split_pairs('a=b,"c,d"=e*2')) == ["a=b", '"c,d"=e*2']


# Formats.


def formats():
    rows = [{"params": n, "tokens": d, "loss": y} for n, d, y in GRID]
    plain = as_csv(LINES)
    yield "t.csv", plain
    yield "t.tsv", as_csv(LINES, separator="\t")
    yield "t.txt", as_csv(LINES, separator="|")
    yield "t.CSV", plain.replace("\n", "\r\n")
    yield "old-mac.csv", plain.replace("\n", "\r")
    yield "spaces.txt", plain.replace(",", "   ")
    yield "table.md", "".join(f"| {' | '.join(x)} |\n" for x in
                              [["params", "tokens", "loss"], ["---:"] * 3, *LINES])  # fmt: skip
    yield "t.csv.gz", gzip.compress(plain.encode(), mtime=0)
    yield "packed.csv", gzip.compress(plain.encode(), mtime=0)
    yield "T.TXT", plain
    yield "t.dat", plain.replace(",", " ")
    yield "utf16.csv", as_csv(LINES, separator="\t").encode("utf-16")
    yield "no-mark.csv", plain.encode("utf-16-le")
    yield "mark.csv", plain.encode("utf-8-sig")
    yield "comment.csv", "# exported 2026-01-05\n" + plain
    yield "comments.csv", plain.replace("\n", "\n# of this size no more\n", 9)
    yield "numpy.csv", "# " + plain
    yield "excel.csv", "sep=;\n" + plain.replace(",", ";")
    yield "title.csv", "The ladder of January,,\n,,\n" + plain
    yield "empty columns.csv", plain.replace("\n", ",,\n")
    yield "index.csv", "".join(f"{i or ''},{x}\n" for i, x in enumerate(plain.splitlines()))
    yield "t.json", json.dumps(rows)
    yield "columns.json", json.dumps({k: [row[k] for row in rows] for k in rows[0]})
    yield "split.json", json.dumps({"columns": list(rows[0]), "data": [list(x) for x in GRID]})
    yield "runs.json", json.dumps({"project": "p", "runs": rows})
    yield "named.json", json.dumps({f"r{i}": row for i, row in enumerate(rows)})
    yield (
        "t.jsonl",
        "".join(json.dumps({**r, "note": "a\u2028b"}, ensure_ascii=False) + "\n" for r in rows),
    )
    yield "t.jsonl.gz", gzip.compress("\n".join(map(json.dumps, rows)).encode())
    yield "separator.csv", as_csv([[*x, "fine\u2028rerun\x85"] for x in LINES],
                                  ("params", "tokens", "loss", "note"))  # fmt: skip
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({k: [r[k] for r in rows] for k in rows[0]}), buffer)
    yield "t.parquet", buffer.getvalue()
    yield "t.parquet.gz", gzip.compress(buffer.getvalue())


@pytest.mark.parametrize(
    ("name", "content"), list(formats()), ids=lambda x: x if len(x) < 20 else ""
)
def test_a_table_is_read_in_whatever_form_it_comes(name, content, tmp_path):
    assert is_grid(read(tmp_path / name, content))


def test_what_was_not_plain_about_a_file_is_reported(tmp_path):
    notes = {
        "utf-16": read(tmp_path / "a.csv", as_csv(LINES).encode("utf-16")).notes,
        "windows-1252": read(
            tmp_path / "b.csv",
            as_csv(LINES, ("params", "tokens", "loß")).encode("cp1252"),
            "loss=loß",
        ).notes,
        "comments": read(tmp_path / "c.csv", "# one\n" + as_csv(LINES)).notes,
        "above the header": read(tmp_path / "d.csv", "Ladder\n" + as_csv(LINES)).notes,
    }
    for word, told in notes.items():
        assert any(word in note.lower() for note in told), (word, told)
    assert not read(tmp_path / "e.csv", as_csv(LINES)).notes


def test_nested_records_are_columns_by_joined_names(tmp_path):
    lines = [
        {"config": {"model": {"n": n}, "d": d}, "summary": {"loss": y}, "tags": []}
        for n, d, y in GRID
    ]
    lines[4]["summary"]["loss"] = math.nan
    text = "\n".join(map(json.dumps, lines))
    rows = read(
        tmp_path / "t.jsonl", text, "params=config.model.n,tokens=config.d,loss=summary.loss"
    )
    assert is_grid(rows, len(GRID) - 1)
    assert usable(rows)[1] == [{"run": "line 5", "reason": "loss is nan"}]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.xlsx", "PK", "a spreadsheet; save it as CSV"),
        ("t.csv.bz2", "x", "an archive; unpack it"),
        ("t.pkl", "x", "a pickle, which can run code"),
        ("t.csv.gz", b"no gzip", "not a gzipped file"),
        ("t.csv.gz", gzip.compress(b"a,b\n1,2\n" * 99, mtime=0)[:-9], "cut off"),
        ("t.json", "[1, 2]", "row 1 holds a int, expected an object"),
        ("t.json", "{", "not a JSON document"),
        ("t.jsonl", '{"a": 1}\n{"a": \n', "line 2 is no JSON"),
        ("t.jsonl", '{"a": 1, "a": 2}\n', "key given twice"),
        ("t.csv", b"params,loss\n1,\x00\n", "holds bytes of 0"),
        ("t.csv", "params,loss\n1,2,5,3\n", "a cell that holds the separator needs quotes"),
    ],
)
def test_a_file_that_is_no_table_is_refused_with_the_reason(name, content, words, tmp_path):
    with pytest.raises(BadInput, match=words):
        read(tmp_path / name, content)


def test_a_chart_of_wandb_is_rows_by_run_and_what_it_lacks_is_reported(tmp_path):
    names = [f"n{n:.0f} - {metric}{end}" for n in SIZES[:3] for metric in ("loss", "tokens")
             for end in ("", "__MIN", "__MAX")]  # fmt: skip
    lines = [[step, *([9 - step / 100] * 3 + [step * 1000] * 3) * 3] for step in (100, 200)]
    lines.append([300, *["", "", "", 3e5, 3e5, 3e5] * 3])
    rows = read(tmp_path / "t.csv", as_csv(lines, ("Step", *names)))
    assert len(rows) == 3
    assert (rows[0]["loss"], rows[0]["tokens"]) == ("7.0", "300000.0")
    with pytest.raises(
        BadInput, match=r"(?s)no column 'params'.*a chart exported from W&B.*table of runs"
    ):
        usable(rows)
    plain = read(
        tmp_path / "t.csv", as_csv(lines, ("Step", *[n.replace(" - ", "/") for n in names]))
    )
    assert len(plain) == 3
    assert "run" not in plain[0]


# Which cell is wrong.


def test_the_first_wrong_cell_is_named_with_its_place_and_a_flag_that_helps(tmp_path):
    lines = [[*line[:2], "3.1.2"] if i in (9, 12) else line for i, line in enumerate(LINES)]
    rows = read(tmp_path / "t.csv", as_csv(lines, ("params", "tokens", "val")), "loss=val")
    with pytest.raises(BadInput) as refused:
        usable(rows)
    (told,) = refused.value.problems
    assert told.startswith("line 11: loss (val) is '3.1.2', expected a number, and 1 more row is")
    flag = "loss!='3.1.2'"
    assert f'--where="{flag}"' in told
    kept, dropped = table.usable_rows(rows, ("params", "tokens", "loss"), flag)
    assert len(kept) == len(GRID) - 2
    assert [row["reason"] for row in dropped] == [f"not {flag}"] * 2
    words = [[*line[:2], "low"] for line in LINES]
    with pytest.raises(BadInput, match="--columns=loss=… names another column"):
        usable(read(tmp_path / "t.csv", as_csv(words)))


# Conditions.

ROWS = [{"D/N": 5.0, "val loss": "3.2", "optimizer": "adamw", "size": "20M", "a and b": 1},
        {"D/N": 20.0, "val loss": "2.9", "optimizer": "muon", "size": "1.5B", "a and b": 2},
        {"D/N": 80.0, "val loss": "", "optimizer": "soap, new", "size": None,
         "a and b": 3}]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("D/N<10", [0]),
        ("D/N >= 20, val loss<3", [1]),
        ('"val loss"<3', [1]),
        ("`val loss`<3 and optimizer==muon", [1]),
        ("optimizer in (adamw, muon)", [0, 1]),
        ("optimizer in ('soap, new', muon)", [1, 2]),
        ("optimizer not in (adamw, muon)", [2]),
        ("optimizer!=muon", [0, 2]),
        ("optimizer=='soap, new'", [2]),
        ("D/N in (5, 80)", [0, 2]),
        ("size>1e9", [1]),
        ("size<=20M", [0]),
        ("'a and b'>1 and D/N<50", [1]),
        ("val loss!=3.2", [1, 2]),
    ],
)
def test_conditions_may_name_any_column(text, kept):
    assert np.flatnonzero(where.match_where(ROWS, text)).tolist() == kept


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("D/N", "expected comparisons"),
        ("D/N=5", "== compares"),
        ("D/N<5 or D/N>7", "expected comparisons|cannot be compared"),
        ("width<3", "no column 'width'; there are D/N"),
        ("optimizer<muon", "optimizer cannot be compared with 'muon'"),
        ("optimizer<3", "optimizer cannot be compared with '3'"),
        ("in (3)", "expected comparisons"),
    ],
)
def test_a_condition_that_cannot_be_read_is_reported(text, words):
    with pytest.raises(BadInput, match=words):
        where.match_where(ROWS, text)


# What a table says against itself.


def as_rows(grid=GRID, **more):
    return [{"params": n, "tokens": d, "loss": y, **more} for n, d, y in grid]


def iso(scale=1.0, kinds=(("", 1.0),), flops_per=6.0):
    """Three budgets with five sizes each."""
    out = []
    for kind, worse in kinds:
        for c in (1e18, 1e19, 1e20):
            for n in 0.1 * math.sqrt(c) * 2.0 ** np.arange(-2, 3):
                d = c / 6 / n
                row = {
                    "params": n,
                    "tokens": d,
                    "flops": c * scale * flops_per / 6,
                    "loss": loss_at(n, d) * worse,
                }
                out.append(row | ({"corpus": kind} if kind else {}))
    return out


def renamed(rows, **names):
    return [{names.get(k, k): v for k, v in row.items()} for row in rows]


def warnings_of(law, rows, **options):
    return analyze(law, rows, {"bootstrap": 0, **options}).document["warnings"]


def test_a_target_far_beyond_the_table_is_reported_and_farther_refused():
    most = 6 * SIZES[-1] * LENGTHS[-1]
    near, far, too_far = ({"predict_flops": [most * factor]} for factor in (100.0, 1e4, 1e6))
    assert not any(
        "beyond" in w or "times the largest" in w
        for w in warnings_of("chinchilla", as_rows(), **near)
    )
    assert any(
        "times the largest of the table" in w for w in warnings_of("chinchilla", as_rows(), **far)
    )
    for law, rows in (("chinchilla", as_rows()), ("isoflop", iso())):
        with pytest.raises(BadInput, match=r"--predict_flops=.*times the largest.*--far predicts"):
            analyze(law, rows, {"predict_flops": [1e27]})
    assert analyze("chinchilla", as_rows(), {**too_far, "far": True, "bootstrap": 0}).document[
        "predictions"
    ]
    with pytest.raises(BadInput, match=r"--predict=.*params in millions"):
        analyze(
            "power", [{**r, "params": r["params"] / 1e6} for r in as_rows()], {"predict": [1e9]}
        )


@pytest.mark.parametrize(
    ("scale", "flag"),
    [(1e-9, "flops=flops*1e9"), (1e-18, "flops=flops*1e18"), (1 / 8.64e19, "flops=flops*8.64e+19"),
     (1e9, "tokens=tokens*1e9"), (1e15, "params=params*1e6,tokens=tokens*1e9")],
)  # fmt: skip
@pytest.mark.parametrize("law", ["isoflop", "chinchilla"])
def test_flops_in_another_unit_are_refused_with_the_flag_that_scales_them(law, scale, flag):
    with pytest.raises(BadInput) as refused:
        analyze(law, iso(scale), {})
    assert f"--columns='{flag}'" in str(refused.value)
    assert "--odd_units" in str(refused.value)
    assert analyze("isoflop", iso(scale), {"odd_units": True, "bootstrap": 0}).document["params"]


def test_flops_of_another_convention_do_not_fill_the_rows_that_have_none(tmp_path):
    rows = iso(flops_per=8.0)
    lines = [
        [r["params"], r["tokens"], "" if i % 2 else r["flops"], r["loss"]]
        for i, r in enumerate(rows)
    ]
    text = as_csv(lines, ("params", "tokens", "flops", "loss"))
    mixed = read(tmp_path / "t.csv", text)
    with pytest.raises(
        BadInput, match=r"7 rows have no flops.*1\.33 times.*flops=params\*tokens\*6"
    ):
        analyze("isoflop", mixed, {})
    assert any("7 rows have no flops" in w for w in warnings_of("chinchilla", mixed))
    alike = read(tmp_path / "t.csv", text, "flops=params*tokens*6")
    found = analyze("isoflop", alike, {"bootstrap": 0}).document
    assert found["params"]["params_exponent"] == pytest.approx(0.33 / 0.67, abs=0.01)
    filled = [{**r, "flops": "" if i % 2 else r["flops"]} for i, r in enumerate(iso())]
    assert all(
        r["flops"] == pytest.approx(6 * r["params"] * r["tokens"]) for r in table.fill_flops(filled)
    )


def test_two_conventions_in_one_column_are_reported():
    rows = [
        {**r, "flops": 6 * r["params"] * r["tokens"] * (1 + i % 2 / 3)}
        for i, r in enumerate(as_rows())
    ]
    assert any("two conventions in one column" in w for w in warnings_of("chinchilla", rows))
    same = [{**r, "flops": 8 * r["params"] * r["tokens"]} for r in as_rows()]
    assert not any("two conventions" in w for w in warnings_of("chinchilla", same))


def test_small_counts_are_taken_for_millions_and_billions():
    small = as_rows([(n / 1e6, d / 1e9, y) for n, d, y in GRID])
    assert any("if these are millions or billions" in w for w in warnings_of("chinchilla", small))
    with pytest.raises(BadInput, match="params in millions and tokens in billions"):
        analyze("chinchilla", small, {"predict_flops": [1e21]})
    assert not any("millions" in w for w in warnings_of("chinchilla", as_rows()))


@pytest.mark.slow
def test_groups_are_reported_by_every_method():
    kinds = (("c4", 1.0), ("pile", 0.9))
    for law in ("isoflop", "envelope", "chinchilla"):
        corpora = "corpus \\(c4: 15 rows, pile: 15 rows\\)"
        with pytest.raises(BadInput, match=f"2 groups are not comparable, .*: {corpora}"):
            analyze(law, iso(kinds=kinds), {})
        told = warnings_of(law, iso(kinds=kinds), mix=True)
        assert any("corpus (c4: 15 rows, pile: 15 rows)" in w for w in told), law
        named = renamed(iso(kinds=kinds), corpus="group")
        told = warnings_of(law, named, mix=True)
        assert any("group (c4: 15 rows, pile: 15 rows)" in w for w in told), law
        assert not any("comparable" in w for w in warnings_of(law, iso())), law
        told = warnings_of(law, renamed(iso(kinds=kinds), corpus="shuffled"))
        assert any("2 values of 'shuffled' (c4, pile) are fitted together" in w for w in told), law
        assert not any("fitted together" in w for w in warnings_of(law, iso())), law
    notes = [{**r, "note": f"seen by {i}"} for i, r in enumerate(as_rows())]
    assert not any("fitted together" in w for w in warnings_of("chinchilla", notes))


def test_a_row_that_is_there_twice_counts_once_and_is_reported():
    rows = as_rows()
    twice = analyze("chinchilla", rows + rows[3:6], {"bootstrap": 0}).document
    assert twice["n_points"] == len(rows)
    assert [row["reason"] for row in twice["dropped"]] == [
        f"equal to row {i} in every column" for i in (4, 5, 6)
    ]
    seeds = [{**r, "seed": k} for k in range(2) for r in rows]
    told = warnings_of("chinchilla", seeds)
    assert any("28 rows have the params, tokens and loss of another row" in w for w in told)
    assert not any("of another row" in w for w in warnings_of("chinchilla", rows))


def test_points_of_curves_are_reported_and_the_last_can_be_chosen():
    rows = [
        {"run": f"r{n:.0f}-{last:.0f}", "params": n, "tokens": d, "loss": loss_at(n, d)}
        for n in SIZES
        for last in LENGTHS
        for d in np.linspace(last / 8, last, 8)
    ]
    assert any("196 rows look like points of a curve" in w for w in warnings_of("chinchilla", rows))
    found = analyze("chinchilla", rows, {"last_rows": True, "bootstrap": 0}).document
    assert found["n_points"] == 28
    assert not any("curve" in w for w in found["warnings"])
    for row in rows:
        row["flops"] = 6 * row["params"] * row["tokens"]
    assert not any("points of a curve" in w for w in warnings_of("envelope", rows))


def test_perplexity_is_not_taken_for_a_loss_in_silence(tmp_path):
    lines = [[*line[:2], f"{math.exp(y):.4f}"] for line, (_, _, y) in zip(LINES, GRID)]
    rows = read(tmp_path / "t.csv", as_csv(lines, ("params", "tokens", "val_ppl")), "loss=val_ppl")
    assert any("logarithm of a perplexity" in note for note in rows.notes)


# The command.


def test_the_command_reads_such_a_table_to_its_law_and_prints_what_was_odd(tmp_path, capsys):
    lines = [[f"{n / 1e6:g}M", f"{d / 1e9:g}", f"{y:.6f}", "crashed" if i == 7 else "finished"]
             for i, (n, d, y) in enumerate(GRID)]  # fmt: skip
    lines[7][2] = "10.8"
    path = tmp_path / "t.csv"
    path.write_bytes(as_csv(lines, ("N", "D (B)", "loss", "State"), ";").encode("utf-16"))
    names = "params=N,tokens=D (B)"
    flags = [f"--runs={path}", f"--out={tmp_path / 'o'}", f"--columns={names}", "--law=chinchilla"]
    assert command.main([*flags, "--predict_flops=1e22", "--bootstrap=0"]) == 0
    printed = capsys.readouterr().out
    document = json.loads((tmp_path / "o" / "fit.json").read_text())
    assert document["params"] == pytest.approx(TRUTH, rel=0.02)
    for word in ("UTF-16", "'State' is taken", "tokens is 'D (B)' times 1e+09", "line 9: crashed"):
        assert word in printed


@pytest.mark.parametrize(
    ("name", "columns", "law"),
    [
        (
            "01_wandb_states",
            "params=parameter_count,tokens=throughput/total_tokens,loss=eval/macro_loss",
            1,
        ),
        *(("04_missing_words", "", 1), ("05_thousands", "", 1), ("06_suffixes", "", 1)),
        ("07_units_in_header", "params=params (M),tokens=tokens (B),loss=val loss", 1),
        *(("09_utf16", "", 1), ("14_comment", "", 1), ("19_line_separator", "", 1)),
        ("13_runs", "", 1),
        ("15_wandb_chart", "", "a chart exported from W&B"),
        ("16_curves", "", "points of a curve"),
        ("17_some_flops", "", "9 rows have no flops"),
    ],
)  # fmt: skip
def test_the_cases_that_were_collected(name, columns, law):
    path = next((p for p in CASES.glob(f"{name}.*")), None)
    if path is None:
        pytest.skip(f"{name} is not at hand; ISOFLOP_CASES may name its folder")
    method = "isoflop" if "flops" in name else "chinchilla"
    try:
        rows = table.read_runs(path, _parse_pairs("columns", columns))
        document = analyze(method, rows, {"bootstrap": 0, "predict_flops": [1e21]}).document
        told = "\n".join(document["warnings"])
    except BadInput as error:
        document, told = None, str(error)
    if isinstance(law, str):
        assert law in told
        return
    assert document, told
    size = document["predictions"][0]["params"]
    assert size == pytest.approx(2.85e9, rel=0.15)


def test_words_of_states_do_not_contradict_each_other():
    assert not states.DONE & states.NOT_DONE
    assert all(word == states.normalized(word) for word in states.DONE | states.NOT_DONE)
