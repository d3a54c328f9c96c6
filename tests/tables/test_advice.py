"""What is said of a table whose columns have other names: a flag that works as it stands."""

import json
import re

import numpy as np
import pytest

from experiments import fit as command
from research.errors import BadInput
from research.scaling import Options, groups
from research.scaling.flags import _parse_pairs
from research.tables import table
from tests.tables.test_tables_from_elsewhere import GRID, as_csv, is_grid

NEEDED = ("params", "loss")  # of the default law, which reads tokens where there are any


def flag_of(path, needed=NEEDED, columns=""):
    rows = table.read_runs(path, _parse_pairs("columns", columns))
    with pytest.raises(BadInput) as refused:
        table.usable_rows(rows, needed)
    return re.findall(r"--columns='([^']*)'", str(refused.value))[0]


def lines(*make):
    return [[f(n, d, y) for f in make] for n, d, y in GRID]


TABLES = {
    "a letter each": (("N", "D", "C", "loss"), [lambda n, d, y: n, lambda n, d, y: d,
                                                lambda n, d, y: 6 * n * d, lambda n, d, y: y]),
    "sets of losses": (("model_size", "num_params", "train_loss", "C4 Eval Loss", "loss_std",
                        "tokens_seen"),
                       [lambda n, d, y: "tiny", lambda n, d, y: n, lambda n, d, y: 9.0,
                        lambda n, d, y: y, lambda n, d, y: 0.1, lambda n, d, y: d]),
    "budgets": (("compute_budget", "training_tokens", "validation_loss"),
                [lambda n, d, y: 6 * n * d, lambda n, d, y: d, lambda n, d, y: y]),
    "perplexity": (("total_parameter_count", "flops", "lambada_ppl"),
                   [lambda n, d, y: n, lambda n, d, y: 6 * n * d, lambda n, d, y: np.exp(y)]),
    "a tracker's": (("State", "train/loss", "val/loss", "n_params", "max_iters", "batch_size",
                     "block_size"),
                    [lambda n, d, y: "finished", lambda n, d, y: 9.0, lambda n, d, y: y,
                     lambda n, d, y: n, lambda n, d, y: d / 64 / 256, lambda n, d, y: 64,
                     lambda n, d, y: 256]),
    "a header of each size": (("Params", "N", "D", "loss"),
                              [lambda n, d, y: "12M" if n == d / 50 else "", lambda n, d, y: n,
                               lambda n, d, y: d, lambda n, d, y: y]),
    "both counts of a sparse model": (("total params", "active params", "tokens", "loss"),
                                      [lambda n, d, y: 8 * n, lambda n, d, y: n,
                                       lambda n, d, y: d, lambda n, d, y: y]),
    "bits of a byte": (("Params", "Tokens", "Pile bits-per-byte"),
                       [lambda n, d, y: n, lambda n, d, y: d, lambda n, d, y: y]),
    "a likelihood": (("Params", "Tokens", "log_likelihood"),
                     [lambda n, d, y: n, lambda n, d, y: d, lambda n, d, y: -y]),
    "units": (("Model Size (B)", "Pretraining Data Size (T)", "nll"),
              [lambda n, d, y: n / 1e9, lambda n, d, y: d / 1e12, lambda n, d, y: y]),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_the_advised_flag_reads_the_table_whole(tmp_path, name):
    header, make = TABLES[name]
    path = tmp_path / "t.csv"
    path.write_text(as_csv(lines(*make), header))
    flag = flag_of(path)
    assert is_grid(table.read_runs(path, _parse_pairs("columns", flag)))


def test_the_advised_flag_keeps_what_was_named(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(as_csv(lines(*TABLES["a letter each"][1]), ("N", "D", "C", "nats")))
    flag = flag_of(path, columns="loss=nats")
    assert flag == "loss=nats,params=N,tokens=D,flops=C"
    assert is_grid(table.read_runs(path, _parse_pairs("columns", flag)))


def test_what_cannot_be_is_not_advised(tmp_path):
    """FLOPs of one forward pass, a size in words, and weights or errors of a loss. Twin: the same
    columns with numbers that may be."""
    header = ("name", "n_params", "gflops", "loss_weight", "val_loss_se", "val_loss")
    for flops, advised in ((3.4, False), (6 * 1e9 * 2e10 / 1e9, True)):
        path = tmp_path / "t.csv"
        path.write_text(as_csv([["a", 1e9, flops, 0.1, 0.2, 3.0]], header))
        assert ("gflops" in flag_of(path)) == advised
        assert "loss=val_loss," in flag_of(path) + ","


@pytest.mark.parametrize(("name", "expected"), [("ppl", "ln(ppl)"), ("log_ppl", "log_ppl")])
def test_a_perplexity_is_put_into_a_logarithm_once(tmp_path, name, expected):
    path = tmp_path / "t.csv"
    path.write_text(as_csv([[1e9, 2e10, 3.0]], ("N", "D", name)))
    assert flag_of(path) == f"params=N,loss={expected},tokens=D"


def test_columns_with_decimal_commas_are_advised(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("Parameter;Token;val_loss\n5,0E+07;1,2E+9;3,91\n1,0E+08;1,2E+9;3,71\n")
    assert flag_of(path) == "params=Parameter,loss=val_loss,tokens=Token"


def test_a_table_of_scores_is_told_its_law(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(as_csv([[n, 6 * n * d, 0.5] for n, d, _ in GRID], ("N", "FLOPs", "MMLU")))
    with pytest.raises(BadInput, match=r"--law=logistic --against=flops --columns='flops=FLOPs,"):
        table.usable_rows(table.read_runs(path), NEEDED)


def test_a_score_of_known_params_and_tokens_is_one_against_compute(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(as_csv([["7B", "2T", 45.3], ["13B", "2T", 54.8]], ("Size", "Tokens", "MMLU")))
    advised = r"--law=logistic --against=flops --columns='params=Size,tokens=Tokens,accuracy=MMLU'"
    with pytest.raises(BadInput, match=advised):
        table.usable_rows(table.read_runs(path), NEEDED)


@pytest.mark.parametrize(
    ("name", "advised"),
    [("top-1 err (%)", True), ("Test Error", True), ("error rate", True), ("std_err", False),
     ("loss error", False), ("err", False)],
)  # fmt: skip
def test_an_error_rate_is_advised_where_there_is_no_loss(tmp_path, name, advised):
    path = tmp_path / "t.csv"
    path.write_text(as_csv([[1e6, 20.5], [2e6, 18.5]], ("N", name)))
    assert (f"loss={name}" in flag_of(path)) == advised
    path.write_text(as_csv([[1e6, 20.5, 2.1], [2e6, 18.5, 2.0]], ("N", name, "test loss")))
    assert "loss=test loss" in flag_of(path)


def run(tmp_path, text, *flags):
    (tmp_path / "t.csv").write_text(text)
    return command.main([f"--runs={tmp_path / 't.csv'}", f"--out={tmp_path / 'o'}", *flags])


def test_a_law_of_params_alone_tells_of_tokens_that_it_does_not_read(tmp_path):
    """Twin: tokens that go with the size, of which a law of params knows as much."""
    for factor, told in ((lambda n, d: d, True), (lambda n, d: 20 * n, False)):
        text = as_csv([[n, factor(n, d), y] for n, d, y in GRID], ("N", "D", "loss"))
        assert run(tmp_path, text, "--law=power", "--columns=params=N", "--bootstrap=0") == 0
        warnings = json.loads((tmp_path / "o" / "fit.json").read_text())["warnings"]
        assert any("--columns='params=N,tokens=D'" in w for w in warnings) == told


def test_missing_columns_are_said_once_before_groups_and_row_limits(tmp_path, capsys):
    words = ("adamw", "muon")
    rows = [[words[i % 2], n, d, y] for i, (n, d, y) in enumerate(GRID * 50)]
    text = as_csv(rows, ("optimizer", "N", "D", "L"))
    with pytest.raises(BadInput, match="no column 'params'") as refused:
        run(tmp_path, text)
    assert len(refused.value.problems) == 2
    assert "perhaps --columns='params=N,loss=L,tokens=D'" in str(refused.value)
    assert not capsys.readouterr().out


def test_rows_in_a_state_of_another_word_are_fitted_and_drawn(tmp_path):
    """The figure of a law of one column left out runs whose state is finished, and failed."""
    text = as_csv([[n, y, "finished"] for n, _, y in GRID[::4]], ("params", "loss", "State"))
    assert run(tmp_path, text, "--law=power", "--bootstrap=0") == 0
    failed = text.replace("finished", "failed")
    with pytest.raises(BadInput, match="its state 'failed'; --finished='failed' takes such runs"):
        run(tmp_path, failed, "--law=power")
    assert run(tmp_path, failed, "--law=power", "--finished=failed", "--bootstrap=0") == 0


@pytest.mark.slow
def test_groups_are_compared_by_a_flag_that_a_shell_takes(tmp_path, capsys):
    text = as_csv([[2048 * (1 + i % 2), n, d, y] for i, (n, d, y) in enumerate(GRID)],
                  ("seq len", "params", "tokens", "loss"))  # fmt: skip
    assert run(tmp_path, text, "--bootstrap=0", "--law=chinchilla") == 0
    assert "--compare='seq len' compares" in capsys.readouterr().out


def test_every_state_that_is_not_known_is_named_where_they_take_all_rows(tmp_path):
    words = ("keep", "discard")
    rows = [[n, y, words[i % 2]] for i, (n, _, y) in enumerate(GRID[::2])]
    with pytest.raises(BadInput, match="--finished='keep,discard' takes runs in any") as refused:
        run(tmp_path, as_csv(rows, ("params", "loss", "status")), "--law=power")
    flag = re.findall(r"--finished='[^']*'", str(refused.value))[0].replace("'", "")
    text = as_csv(rows, ("params", "loss", "status"))
    assert run(tmp_path, text, "--law=power", flag, "--bootstrap=0") == 0


def test_the_words_below_a_table_of_a_page_are_no_rows(tmp_path):
    """Twin: a row of too few cells, which is one."""
    header, rule = "| params | tokens | loss |", "|---|---|---|"
    rows = [f"| {n:g} | {d:g} | {y} |" for n, d, y in GRID]
    words = ["", "## Findings", "", "- **S**: 2.1 (+3 %)", "| other | table |", "| 1 | 2 |"]
    path = tmp_path / "t.md"
    path.write_text("\n".join(["# Results", "", header, rule, *rows, *words]))
    found = table.read_runs(path)
    assert is_grid(found)
    assert any("on is no row of the first table" in note for note in found.notes)
    path.write_text("\n".join([header, rule, *rows[:-1], "| 1e9 | 2e9 |"]))
    with pytest.raises(BadInput, match="has 2 cells, the header 3"):
        table.read_runs(path)


def test_what_stands_beside_a_list_of_runs_is_of_each(tmp_path):
    path = tmp_path / "t.json"
    runs = [{"tokens": d, "loss": y, "eval": [{"name": "c4", "ce": y}]} for n, d, y in GRID[:4]]
    path.write_text(json.dumps({"model": {"params": GRID[0][0]}, "runs": runs}))
    rows = table.read_runs(path, {"params": "model.params", "loss": "eval.ce"})
    found = [(r["params"], r["tokens"], r["loss"]) for r in table.usable_rows(rows, NEEDED)[0]]
    assert sorted(found) == sorted(GRID[:4])


def test_a_list_of_evaluations_is_told_and_a_folder_of_runs_too(tmp_path):
    evaluations = [{"val_data": "c4", "loss": 3.0}, {"val_data": "wiki", "loss": 2.0}]
    of_run = {"params": 1e9, "acc": 8, "results": evaluations}
    (tmp_path / "t.json").write_text(json.dumps([of_run, of_run]))
    with pytest.raises(
        BadInput, match=r"'results' is a list of 2 objects .*\(with val_data, loss\)"
    ):
        table.usable_rows(table.read_runs(tmp_path / "t.json"), NEEDED)
    with pytest.raises(BadInput, match=r"holds 1 \.json file; a table of runs is one file"):
        table.read_runs(tmp_path)


def test_points_of_a_log_without_names_are_told(tmp_path):
    """Twin: the same numbers as the steps that each run had in all."""
    for name, told in (("Step", True), ("steps", False)):
        lines = [[n, y, i % 4] for i, (n, _, y) in enumerate(GRID)]
        assert run(tmp_path, as_csv(lines, ("params", "loss", name)), "--law=power",
                   "--bootstrap=0") == 0  # fmt: skip
        warnings = json.loads((tmp_path / "o" / "fit.json").read_text())["warnings"]
        assert any("'Step' has 4 values" in w for w in warnings) == told


@pytest.mark.slow
def test_rows_of_several_numbers_of_experts_are_told(tmp_path):
    """Twin: one number of experts in all rows."""
    for experts, told in (((8, 8), False), ((1, 64), True)):
        rows = [[n, d, y, experts[i % 2]] for i, (n, d, y) in enumerate(GRID)]
        text = as_csv(rows, ("params", "tokens", "loss", "model.num_experts"))
        assert run(tmp_path, text, "--law=chinchilla", "--bootstrap=0") == 0
        warnings = json.loads((tmp_path / "o" / "fit.json").read_text())["warnings"]
        assert any("rows differ in 'model.num_experts' (1 to 64)" in w for w in warnings) == told
    rows = table.read_runs(tmp_path / "t.csv", {"group": "model.num_experts"})
    assert len(groups.split(rows, Options())) == 2
