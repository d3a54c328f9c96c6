"""What makes rows comparable: which columns part them, which do not, and that parted rows share no
law unless that is asked for."""

import json

import pytest

from experiments import fit as command
from research.errors import BadInput
from research.scaling import analyze, groups
from research.scaling.options import Options
from research.tables import replicates, table
from research.tables.comparable import counted, group_rows
from tests.scaling.test_minima import two_recipes
from tests.tables.test_tables_from_elsewhere import GRID, iso, renamed

OWN = {
    "flops_convention": "exact_full",
    "group": "transformer",
    "task": "language_modeling",
    "loss_unit": "nats per token",
    "data_digest": "a" * 64,
    "context": 128,
    "optimizer": "adamw",
    "code": "c" * 16,
    "commit": "1" * 40,
    "jax": "0.9.0",
    "eval.examples": 1024,
    "data.name": "text",
    "data.path": "stdlib",
    "data.seed": 0,
    "optim.lr": 0.1,
    "optim.clip": 1.0,
    "optim.optimizer.name": "adamw",
    "optim.schedule.name": "cosine",
    "model.norm": "rms",
    "model.qk_norm": False,
    "model.dtype": "float32",
    "model.width": 64,
    "model.attention": "own",
    "mesh.data": -1,
    "save.on_error": "stop",
    "log.trackers": "[]",
}


def grid(**columns):
    """A table of sizes and lengths with a known law."""
    return [
        {"run": f"r{i}", "params": n, "tokens": d, "flops": 6 * n * d, "loss": y, **columns}
        for i, (n, d, y) in enumerate(GRID)
    ]


def own(every=2, **changed):
    """Records of this project, of which every second has the changed settings."""
    return [{**r, **OWN, **(changed if i % every else {})} for i, r in enumerate(grid())]


def parting(rows):
    return group_rows(rows).columns


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("group", "gru"),
        ("task", "classification"),
        ("loss_unit", "bits per byte"),
        ("data_digest", "b" * 64),
        ("context", 256),
        ("eval.examples", 256),
        ("optim.schedule.name", "wsd"),
        ("optim.optimizer.name", "muon"),
        ("optim.clip", "none"),
        ("model.norm", "layer"),
        ("model.qk_norm", True),
        ("model.dtype", "bfloat16"),
        ("code", "d" * 16),
        ("precision", "highest"),
    ],
)
def test_runs_that_differ_in_what_decides_a_result_are_groups(name, value):
    rows = (
        own(**{name: value})
        if name in OWN
        else [{"precision": "default", **r} for r in own(precision=value)]
    )
    found = group_rows(rows)
    assert found.columns == [name]
    assert sum(found.counts[name].values()) == len(rows)
    assert len({*found.labels}) == 2
    with pytest.raises(BadInput, match=f"2 groups are not comparable.*{name} .*14 rows.*--mix"):
        analyze("chinchilla", rows, {"bootstrap": 0})


MAY_DIFFER = {
    "data.seed": 3,
    "optim.lr": 0.3,
    "optim.clip": 2.0,
    "model.width": 96,
    "data.path": "/elsewhere/stdlib",  # with the same content
    "model.attention": "xla",
    "mesh.data": 4,
    "save.on_error": "continue",
    "log.trackers": '["wandb"]',
    "commit": "2" * 40,
    "jax": "0.9.1",
    "seed": 7,
    "batch": 8,
}


@pytest.mark.parametrize("name", MAY_DIFFER)
def test_what_may_differ_parts_no_runs(name):
    assert parting(own(**{name: MAY_DIFFER[name]})) == []


def test_runs_that_differ_in_all_that_may_differ_share_a_law():
    rows = own(**MAY_DIFFER)
    assert analyze("chinchilla", rows, {"bootstrap": 0}).document["n_points"] == len(rows)


def test_a_table_read_back_from_a_csv_is_parted_as_its_workdir():
    rows = own(**{"model.qk_norm": True, "optim.lr": 0.3, "context": 256})
    texts = [{k: str(v) for k, v in row.items()} for row in rows]
    assert parting(rows) == parting(texts) == ["context"]
    switched = own(**{"model.qk_norm": True})
    assert parting(switched) == parting([{k: str(v) for k, v in r.items()} for r in switched])
    assert parting(switched) == ["model.qk_norm"]


def test_a_column_that_another_implies_is_not_named_and_one_that_parts_further_is():
    both = own(**{"group": "gru", "model.norm": "none", "model.dtype": "bfloat16"})
    assert parting(both) == ["group"]
    assert group_rows(both).labels[:2] == ["transformer", "gru"]
    further = [{**r, "model.qk_norm": bool(i // 2 % 2)} for i, r in enumerate(both)]
    found = group_rows(further)
    assert found.columns == ["group", "model.qk_norm"]
    assert sorted({*found.labels}) == [
        "gru, qk_norm=False", "gru, qk_norm=True", "transformer, qk_norm=False",
        "transformer, qk_norm=True",
    ]  # fmt: skip


def test_a_rule_of_transfer_names_its_group_and_not_the_shape_that_goes_with_it():
    base = {"optim.transfer.depth": 2, "optim.transfer.rule": "complete_p"}
    none = dict.fromkeys(base, "none")
    rows = [{**none, **row} for row in own(**base)]
    assert parting(rows) == ["optim.transfer.rule"]
    assert sorted({*group_rows(rows).labels}) == ["complete_p", "rule=none"]


def test_data_are_named_by_what_says_more_than_their_digest():
    moved = own(**{"data_digest": "b" * 64, "data.path": "other.txt"})
    assert parting(moved) == ["data.path"]
    assert parting(own(data_digest="b" * 64)) == ["data_digest"]
    assert group_rows(own(data_digest="b" * 64)).labels[1] == f"data_digest {'b' * 12}"


def test_amounts_of_the_same_data_are_what_a_sweep_varies_and_changed_data_are_not():
    amounts = [
        {**r, "data.examples": 100 * (i % 4), "data_digest": f"{i % 4}" * 64}
        for i, r in enumerate(own())
    ]
    assert parting(amounts) == []
    appended = [{**r, "data_digest": f"{i % 8}" * 64} for i, r in enumerate(amounts)]
    assert parting(appended) == ["data_digest"]


def test_what_is_told_and_parts_nothing():
    def notes(rows):
        return " ".join(group_rows(rows).notes)

    assert "jax (0.9.0: 14 rows, 0.9.1: 14 rows)" in notes(own(jax="0.9.1"))
    assert "commit" not in notes(own(commit="2" * 40))  # their code is equal
    without = [{k: v for k, v in r.items() if k != "code"} for r in own(commit="2" * 40)]
    assert "commit" in notes(without)
    assert notes(own()) == ""
    assert notes(own(jax="0.9.1", data_digest="b" * 64)) == ""  # which share no law
    told = analyze("chinchilla", own(jax="0.9.1"), {"bootstrap": 0}).document["warnings"]
    assert any("jax (0.9.0" in line for line in told)


def test_rows_that_say_nothing_are_taken_to_be_like_the_only_others():
    rows = own(code=None)
    found = group_rows(rows)
    assert found.columns == []
    assert "14 of 28 rows say nothing of code" in found.notes[0]
    three = [{**r, "code": "d" * 16} if i % 4 == 1 else r for i, r in enumerate(rows)]
    assert group_rows(three).counts["code"] == {"c" * 16: 14, "d" * 16: 7, "": 7}
    assert group_rows(own()).notes == []
    other = own(code=None, data_digest="b" * 64)  # of whom none says it
    assert group_rows(other).notes == []


# Tables from elsewhere.


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("dataset", ("c4", "pile")),
        ("config/data.corpus", ("c4", "pile")),
        ("Tokenizer", ("gpt2", "llama")),
        ("vocab_size", ("32000", "50257")),
        ("seq_len", ("1024", "2048")),
        ("lr_scheduler_type", ("cosine", "wsd")),
        ("optimizer", ("adamw", "muon")),
        ("precision", ("16", "32")),
        ("dtype", ("bf16", "fp8")),
        ("group", ("a", "b")),
    ],
)
def test_columns_of_another_table_that_say_what_was_measured_or_trained_part_it(name, values):
    rows = [{**r, name: values[i % 2]} for i, r in enumerate(grid())]
    assert parting(rows) == [name]
    assert parting([{**r, name: values[0]} for r in rows]) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dataset", lambda i, r: f"shard-{i}"),  # of every row its own
        ("group", lambda i, r: f"{r['params']:.0f} parameters"),
        ("arch", lambda i, r: f"gpt-{r['params']:.0f}"),
        ("context", lambda i, r: 1024 if r["params"] < 3e8 else 2048),
        ("data", lambda i, r: 1000 * (i % 2 + 1)),  # how many
        ("precision", lambda i, r: 0.9 + 0.01 * (i % 2)),  # of a classifier
        ("width", lambda i, r: 64 * (i % 2 + 1)),
        ("lr", lambda i, r: 0.1 * (i % 2 + 1)),
        ("batch_size", lambda i, r: 64 * (i % 2 + 1)),
        ("seed", lambda i, r: i % 2),
        ("created_at", lambda i, r: f"2026-01-{i + 1:02}"),
    ],
)
def test_columns_that_number_rows_or_go_with_their_size_part_nothing(name, value):
    if name == "arch":  # each of one size
        rows = [r for r in grid() if r["tokens"] == GRID[0][1]]
    else:
        rows = grid()
    assert parting([{**r, name: value(i, r)} for i, r in enumerate(rows)]) == []


def test_context_that_does_not_go_with_the_size_parts():
    rows = [{**r, "context": 1024 if r["tokens"] < 1e10 else 2048} for r in grid()]
    assert parting(rows) == ["context"]


# One law.


def test_rows_are_mixed_only_when_that_is_asked_for_and_the_document_says_so():
    rows = [{**r, "dataset": "ab"[i % 2]} for i, r in enumerate(grid())]
    for law in ("auto", "chinchilla", "isoflop", "envelope"):
        with pytest.raises(BadInput, match=r"dataset \(a: 14 rows, b: 14 rows\)"):
            analyze(law, rows, {})
    document = analyze("chinchilla", rows, {"mix": True, "bootstrap": 0}).document
    assert document["mixed"] == {"dataset": {"a": 14, "b": 14}}
    assert any("--mix" in line and "dataset" in line for line in document["warnings"])
    alike = analyze("chinchilla", grid(), {"mix": True, "bootstrap": 0}).document
    assert "mixed" not in alike
    assert not any("--mix" in line for line in alike["warnings"])
    one = analyze("chinchilla", rows, {"where": "dataset==a", "bootstrap": 0}).document
    assert one["n_points"] == 14
    assert "mixed" not in one


def test_rows_of_several_groups_are_never_replicates():
    seeds = [{**r, "run": f"{k}-{r['run']}", "seed": k, "loss": r["loss"] * (1 + 0.001 * k)}
             for k in range(2) for r in grid()]  # fmt: skip
    parted = [{**r, "code": "ab"[r["seed"]]} for r in seeds]

    def largest(rows):
        labeled, _ = groups.grouped(rows, Options(mix=True))
        usable, _ = table.usable_rows(labeled, ("params", "tokens", "loss"))
        return max(map(len, replicates.replicate_groups(usable, ("params", "tokens")).values()))

    assert largest(parted) == 1
    other_windows = [{**OWN, **r, "eval.examples": 64 * (1 + r["seed"])} for r in seeds]
    assert largest(other_windows) == 1
    assert largest([{**r, "eval.examples": 64} for r in other_windows]) == 2
    assert largest(seeds) == 2


def test_a_column_of_clusters_parts_nothing():
    rows = [{**r, "group": f"g{i % 5}"} for i, r in enumerate(grid())]
    options = {"cluster": "group", "bootstrap": 20}
    assert analyze("chinchilla", rows, options).document["n_points"] == len(rows)
    with pytest.raises(BadInput, match="5 groups are not comparable"):
        analyze("chinchilla", rows, {})


@pytest.mark.slow
def test_a_comparison_takes_rows_apart_by_its_column_alone():
    by_optimizer = renamed(two_recipes(), group="optimizer")
    found = analyze("chinchilla", by_optimizer, {}, compare_by="optimizer").document
    assert set(found["compare"]["groups"]) == {"adamw", "muon"}
    assert not any("may differ" in line for line in found["warnings"])
    with_data = [{**r, "dataset": "ab"[i % 2]} for i, r in enumerate(by_optimizer)]
    with pytest.raises(
        BadInput, match=r"--compare=optimizer: rows of optimizer .* are not comparable"
    ):
        analyze("chinchilla", with_data, {}, compare_by="optimizer")
    confounded = [
        {**r, "dtype": "bf16" if r["optimizer"] == "muon" else "f32"} for r in by_optimizer
    ]
    confounded = [{**r, "schedule": r["dtype"] + "s"} for r in confounded]
    told = analyze("chinchilla", confounded, {}, compare_by="dtype").document["warnings"]
    assert any("groups of dtype may differ in optimizer too" in line for line in told)


@pytest.mark.slow
def test_a_switch_of_the_config_can_be_compared_and_is_named(tmp_path):
    rows = own(**{"model.qk_norm": True})
    found = analyze("chinchilla", rows, {"bootstrap": 0}, compare_by="model.qk_norm").document
    assert set(found["compare"]["groups"]) == {"qk_norm=False", "qk_norm=True"}
    taken = analyze("chinchilla", rows, {"where": "model.qk_norm==true", "bootstrap": 0}).document
    assert taken["n_points"] == 14
    digests = own(data_digest="b" * 64)
    one = analyze("chinchilla", digests, {"where": f"data_digest=={'b' * 12}", "bootstrap": 0})
    assert one.document["n_points"] == 14
    with pytest.raises(BadInput):
        analyze("chinchilla", digests, {"where": f"data_digest=={'b' * 7}", "bootstrap": 0})


# The command.


def write(path, rows):
    path.write_text(json.dumps(rows))
    return path


def fit(path, out, *flags):
    return command.main([f"--runs={path}", "--law=chinchilla", f"--out={out}", *flags])


@pytest.mark.slow
def test_the_command_writes_a_law_for_each_group(tmp_path, capsys):
    rows = [{**r, "optimizer": "muon" if i % 2 else "adam w/o decay"} for i, r in enumerate(grid())]
    path = write(tmp_path / "runs.json", rows)
    assert fit(path, tmp_path / "o") == 0
    told = capsys.readouterr().out
    assert "optimizer (adam w/o decay: 14 rows, muon: 14 rows)" in told
    assert "--compare=optimizer" in told
    names = sorted(p.relative_to(tmp_path / "o").as_posix() for p in tmp_path.glob("o/**/fit.json"))
    assert names == ["adam_w_o_decay/fit.json", "muon/fit.json"]
    documents = [json.loads((tmp_path / "o" / name).read_text()) for name in names]
    assert [document["n_points"] for document in documents] == [14, 14]
    assert fit(path, tmp_path / "one", "--mix") == 0
    assert json.loads((tmp_path / "one" / "fit.json").read_text())["n_points"] == 28
    assert fit(write(tmp_path / "alike.json", grid()), tmp_path / "alike") == 0
    assert (tmp_path / "alike" / "fit.json").exists()


def test_a_group_without_a_law_is_told_and_none_at_all_is_an_error(
    tmp_path, capsys, without_figures
):
    rows = [{**r, "optimizer": "muon" if i < 25 else "sgd"} for i, r in enumerate(grid())]
    assert fit(write(tmp_path / "runs.json", rows), tmp_path / "o") == 0
    assert "\nno law of sgd: 3 distinct points" in capsys.readouterr().out
    few = write(tmp_path / "few.json", [r for i, r in enumerate(rows) if i > 21])
    with pytest.raises(BadInput) as error:
        fit(few, tmp_path / "few")
    assert [line.partition(":")[0] for line in error.value.problems] == ["muon", "sgd"]
    several = [{**r, "optimizer": f"o{i % 9}"} for i, r in enumerate(grid())]
    fit(write(tmp_path / "some.json", [*rows[:25], *several]), tmp_path / "some")
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("no law")]
    assert line.startswith("no law of o0, o1, o2, o3 and 5 more: ")
    assert line.endswith("(of o0)")
    many = [{**r, "optimizer": f"o{i % 9}"} for i, r in enumerate(grid())]
    with pytest.raises(BadInput) as error:
        fit(write(tmp_path / "many.json", many), tmp_path / "many")
    assert error.value.problems[-1].startswith("nor has any of 5 more groups; --mix")


def test_a_group_with_many_problems_does_not_hide_another_with_a_law(tmp_path, capsys):
    scattered = [{**r, "group": "b", "flops": r["flops"] * (1 + i)} for i, r in enumerate(grid())]
    rows = [*({**r, "group": "a"} for r in iso()), *scattered]
    path = write(tmp_path / "runs.json", rows)
    flags = [f"--runs={path}", "--law=isoflop", f"--out={tmp_path / 'o'}"]
    assert command.main(flags) == 0
    assert capsys.readouterr().out.count("1 size at this budget") > 2
    assert [p.parent.name for p in tmp_path.glob("o/*/fit.json")] == ["a"]


def test_a_column_called_group_parts_by_numbers_too():
    """Twins: another name, numbers that are as many as the rows, and that go with the size."""
    for name, value, several in (
        ("group", lambda i, n: i % 2, True),
        ("batch_of_runs", lambda i, n: i % 2, False),
        ("group", lambda i, n: i, False),
        ("group", lambda i, n: n, False),
    ):
        rows = [{**r, name: value(i, r["params"])} for i, r in enumerate(grid())]
        assert group_rows(rows).several == several


def test_values_that_differ_in_case_alone_are_told():
    """Twin: names that differ in more."""
    for other, told in (("adamw", True), ("Adam-W", True), ("muon", False)):
        rows = [{**r, "optimizer": other if i % 2 else "AdamW"} for i, r in enumerate(grid())]
        lines = groups.told_of_split(rows, Options(), "chinchilla")
        assert any(f"'AdamW' and '{other}' differ in case" in line for line in lines) == told
        labeled, grouping = groups.grouped(rows, Options())
        compared, _ = groups.check(labeled, grouping, "chinchilla", False, "optimizer")
        assert any(f"'AdamW' and '{other}' differ in case" in x for x in compared) == told


def test_a_condition_on_a_column_of_one_group_is_kept(tmp_path):
    rows = [{**r, "group": "a"} if i % 2 else {**r, "group": "b", "width": 64}
            for i, r in enumerate(grid())]  # fmt: skip
    parts = groups.split(table.Table(rows), Options(where="width!=32"))
    assert {name: len(part) for name, part in parts.items()} == {"a": 14, "b": 14}
    for part in parts.values():
        found = analyze("power", part, {"where": "width!=32", "bootstrap": 0})
        assert found.document["n_points"] == 14


def test_folders_of_groups_are_names_of_their_own():
    names = ["a/b", "a_b", "../x", ""]
    folders = [groups.folder(name, names) for name in names]
    assert len({*folders}) == len(names)
    assert not any("/" in name or name.startswith(".") or not name for name in folders)


def test_many_values_are_bounded():
    told = counted("dataset", {f"d{i}": i + 1 for i in range(9)})
    assert told == "dataset (d8: 9 rows, d7: 8 rows, d6: 7 rows, d5: 6 rows, …)"
    assert counted("x", {"": 1}) == "x (none given: 1 row)"
