"""What was measured of a run is no setting of it: runs that differ in it alone are replicates."""

import pkgutil

import pytest

from research.report import text
from research.runs import scores
from research.scaling import checks
from research.tables import replicates
from research.training.tasks import TASKS

MEASURED = {
    column.name for name in TASKS.values() for column in pkgutil.resolve_name(name).METRICS
} | {"macro_recall", "class_f1", "confusion", "loss/val", "bits_per_byte/val", "overlap/val"}
MEASURED |= {f"{kind}/copy" for kind in (*scores.COLUMNS, scores.RECIPE)}
MEASURED |= {"loss_c4", "eval/loss_validation", "acc5", "recall@5", "samples_per_sec", "tok / sec"}
MEASURED |= {"rep", "hex_color", "err_low", "loss_std", "train_contrastive_loss", "deviance"}
CHOSEN = (
    "init_std",
    "accumulation",
    "top_k",
    "loss_scale",
    "loss_type",
    "precision",
    "loss_fn",
    "optimizer",
    "model/width",
    "config/lr",
    "weight/decay",
    "recipe",
)


@pytest.mark.parametrize("name", sorted(MEASURED))
def test_what_is_measured_is_no_setting(name):
    assert not replicates.is_setting(name)
    rows = [{"run": str(i), "params": 1e3, "tokens": 1e6, "seed": i, name: i / 7} for i in range(2)]
    assert [len(c) for c in replicates.replicate_groups(rows, ["params", "tokens"]).values()] == [2]


@pytest.mark.parametrize("name", CHOSEN)
def test_what_is_chosen_is_a_setting(name):
    assert replicates.is_setting(name)


def run(group, seed, loss, **more):
    row = {"run": f"{group}{seed}{more}", "group": group, "status": "done", "seed": seed}
    return row | {"task": "regression", "params": 1e3, "tokens": 1e6, "loss": loss, **more}


def test_groups_are_compared_by_the_mean_of_their_seeds():
    rows = [run(g, s, loss + s) for g, loss in (("a", 1.0), ("b", 3.0)) for s in (0, 1)]
    rows = [{**row, "macro_f1": row["loss"] / 9} for row in rows]
    table = text.comparison_table(rows, "params")
    assert table[1] == ["loss at 1k parameters", "1.5000 ± 0.7071 (2)", "3.5000 ± 0.7071 (2)"]


def test_groups_of_runs_that_differ_in_a_setting_show_how_far():
    rows = [run("a", 0, loss, **{"optim.lr": loss}) for loss in (1.0, 2.0, 4.0)]
    rows += [run("b", 0, 3.0, tokens=5e5), run("b", 0, 2.5)]
    rows += [run("b", 0, 9.0, tokens=9e9, status="failed")]
    table = text.comparison_table(rows, "params")
    assert table[1] == ["loss at 1k parameters", "1.0000 to 4.0000 (3 settings)", "2.5000"]


@pytest.mark.parametrize(
    ("name", "values", "told"),
    [
        ("unique_tokens", (1e6, 2.5e5), True),  # one epoch, and four
        ("epochs", (1, 4), True),
        ("params_non_embedding", (900.0, 500.0), True),
        ("params_non_embedding", (900.0, 901.0), False),
        ("epochs", (3.99, 4), False),
        ("epoch", (3, 4), False),  # where the best checkpoint was
        ("tokens_per_second", (100, 200), False),
    ],
)
def test_rows_of_one_size_and_length_with_another_count_are_no_replicates(name, values, told):
    rows = [{"run": str(i), "params": 1e3, "tokens": 1e6, "loss": 3.0 + i / 7, name: value}
            for i, value in enumerate(values)]  # fmt: skip
    assert replicates.varied_within(rows, ["params", "tokens"]) == [name] * told
    assert len(replicates.replicate_groups(rows, ["params", "tokens"])) == 1 + told


@pytest.mark.parametrize("name", ["train_steps", "_step", "steps", "train/iters"])
def test_rows_of_one_size_with_other_steps_are_no_seeds(name):
    """Twins: a step more or less, a law that reads the tokens, and a table that has them."""
    for steps, columns, more, told in (
        ((1e3, 4e3), ["params"], {}, True),
        ((1000, 1001), ["params"], {}, False),
        ((1e3, 4e3), ["params", "tokens"], {"tokens": 1e9}, False),
        ((1e3, 4e3), ["params"], {"tokens": 1e9}, False),
    ):
        rows = [{"run": f"{i}", "params": 1e6, "loss": 3 - i / 7, name: x, **more}
                for i, x in enumerate(steps)]  # fmt: skip
        assert (name in replicates.varied_within(rows, columns)) == told


@pytest.mark.parametrize("response", ["loss", "accuracy"])
def test_the_best_of_a_cell_is_the_least_loss_or_the_highest_accuracy(response):
    rows = [{"run": f"{lr}", "flops": 1e18, "lr": lr, response: y}
            for lr, y in ((1e-3, 0.5), (2e-3, 0.7), (4e-3, 0.6))]  # fmt: skip
    (best,), dropped = replicates.best_of_cell(rows, ["flops"], response)
    assert best[response] == (0.5 if response == "loss" else 0.7)
    words = "lowest loss" if response == "loss" else "highest accuracy"
    assert all(f"{best['run']} has the {words}" in row["reason"] for row in dropped)
    (told,) = replicates.tuning_warnings([best], ["flops"], dropped, response)
    assert "1 of the best have no second seed" in told
    assert words in replicates.tuning_warnings(rows, ["flops"], [], response)[0]
    edges = replicates.edge_warnings(rows, ["flops"], response)
    assert any("smallest" in line for line in edges) == (response == "loss")


def test_a_column_that_names_sizes_or_lengths_is_no_recipe():
    """Twin: words that go with nothing."""
    rows = [{"run": f"{n}-{k}", "params": n, "tokens": 20 * n * k, "length": f"{k}xC",
             "model": f"ViT-{n:.0e}", "kind": "abc"[i % 3], "loss": 3.0, "flops": None}
            for i, n in enumerate((1e6, 3e6, 1e7, 3e7)) for k in (1, 2, 5, 10)]  # fmt: skip
    told = checks._mixed_recipes(rows, "chinchilla")
    assert [words for words in told if "'length'" in words or "'model'" in words] == []
    assert any("3 values of 'kind'" in words for words in told)


def test_a_comparison_without_a_second_rate_is_told_that_it_holds_for_these_rates():
    rows = [
        {"params": n, "tokens": 1e9, "loss": 2.0, "lr": 0.1 / n, "optimizer": name}
        for n in (1e6, 2e6)
        for name in ("adamw", "muon")
    ]
    columns = ["params", "tokens"]
    (line,) = replicates.untuned_warning(rows, columns, "optimizer")
    assert line.startswith("each group has one learning rate")
    assert not replicates.untuned_warning(rows, columns, "lr")  # which is what is compared
    tried = [*rows, {**rows[0], "lr": 0.3}]
    assert not replicates.untuned_warning(tried, columns, "optimizer")
    unknown = [{k: v for k, v in row.items() if k != "lr"} for row in rows]
    assert not replicates.untuned_warning(unknown, columns, "optimizer")
