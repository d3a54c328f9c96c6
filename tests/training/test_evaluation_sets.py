"""Sets by name are evaluated beside what is held out: each has its columns, one is the headline,
and nothing else of a run changes."""

import csv
import json
import re

import numpy as np
import pytest

from research.config.loading import load_config, validated
from research.config.validation import override, problems
from research.errors import BadInput
from research.runs import metrics_log
from research.runs.directory import RunDirectory
from research.runs.table import read_evaluations, read_table
from research.training.loop import train_run
from research.training.make_run import make_run

pytestmark = pytest.mark.usefixtures("barely_optimized")


def fit(config, workdir):
    run = make_run(config)
    with RunDirectory(workdir, run.id) as directory:
        return train_run(run, directory), directory.path


@pytest.fixture(scope="module")
def texts(corpus, tmp_path_factory):
    """A text of other words, and one whose half is of the training text."""
    folder, text = tmp_path_factory.mktemp("texts"), corpus.read_text()
    rng = np.random.default_rng(3)
    words = ["".join(rng.choice(list("zxqwjkvy"), 5)) for _ in range(400)]
    other = "\n".join(" ".join(rng.choice(words, 10)) for _ in range(120))
    (folder / "other.txt").write_text(other)
    (folder / "half.txt").write_text(text[1000:5000] + "\n" + other[:4000])
    return folder


def sets(texts, *names, **more):
    return [{"name": name, "path": str(texts / f"{name}.txt"), **more} for name in names]


@pytest.fixture(scope="module")
def trained(tiny, texts, tmp_path_factory):
    """A run with two sets: its result, its directory, and its workdir."""
    workdir = tmp_path_factory.mktemp("work")
    changes = {"eval.sets": sets(texts, "other", "half"), "eval.every": 6}
    return *fit(tiny(changes), workdir), workdir


def test_every_set_has_its_columns_everywhere(trained):
    result, path, workdir = trained
    names = ("loss/heldout", "loss/other", "loss/half", "bits_per_byte/other")
    assert all(name in result for name in names)
    assert result["loss/heldout"] == result["loss"]
    assert result["bits_per_byte/heldout"] == result["bits_per_byte"]
    assert result["loss/other"] > result["loss/half"] > result["loss"]  # it was trained on no z
    (row,) = read_table(workdir)
    assert {name: row[name] for name in names} == {name: result[name] for name in names}
    records = [r for r in metrics_log.read_records(path) if "loss" in r]
    assert [r["step"] for r in records] == [6, 12]
    assert [r["loss/other"] for r in records][1] == result["loss/other"]
    assert records[0]["loss/other"] != records[1]["loss/other"]
    curve = read_evaluations(workdir)
    assert [r["loss/other"] for r in curve] == [r["loss/other"] for r in records]
    assert {"loss/other", "loss/half"} <= {m["name"] for m in result["metrics"]}


def test_the_page_has_the_curve_of_every_other_set(trained, tmp_path):
    from research.report import build

    _, _, workdir = trained
    found = build.write_report(workdir, out=tmp_path)
    curves = {name.split(".")[0] for name in found["files"] if name.startswith("curves")}
    assert curves == {"curves", "curves_loss_other", "curves_loss_half"}  # heldout: the headline
    page = (tmp_path / "report.html").read_text()
    assert page.count("Learning curves of all runs on another set.") == 2


def test_the_overlap_is_measured_and_told(trained):
    result = trained[0]
    assert result["overlap/other"] == 0.0
    assert 0.3 < result["overlap/half"] < 0.6
    assert "half: 16 examples; 4" in result["rules"]
    assert "of its runs of 32 tokens are in the training set" in result["rules"]


def test_nothing_else_of_the_run_changes(tiny, trained, tmp_path):
    plain, _ = fit(tiny({"eval.every": 6}), tmp_path)
    assert plain["loss"] == trained[0]["loss"]
    assert plain["train_loss"] == trained[0]["train_loss"]


def test_a_run_without_sets_is_what_it_was(tiny):
    """Neither its id nor its recorded config knows of sets, so older ones are continued."""
    config = tiny()
    assert "sets" in config["eval"]
    run = make_run(config)
    assert run.config["eval"].keys() == {"examples", "batch", "every"}
    assert not problems(run.config)  # as an older launch recorded it
    assert make_run(validated(run.config)).id == run.id


def test_a_resolved_config_repeats_the_run(tiny, texts, trained, tmp_path):
    run = make_run(tiny({"eval.sets": sets(texts, "other", "half"), "eval.every": 6}))
    assert run.id == trained[1].name
    stored = json.loads((trained[1] / "config.json").read_text())
    assert stored == json.loads(json.dumps(run.config))
    assert make_run(validated(stored)).id == run.id
    moved = tmp_path / "moved.txt"
    moved.write_bytes((texts / "other.txt").read_bytes())
    here = sets(texts, "other", "half")
    here[0]["path"] = str(moved)
    assert make_run(tiny({"eval.sets": here, "eval.every": 6})).id == run.id
    moved.write_text("something else " * 40)
    assert make_run(tiny({"eval.sets": here, "eval.every": 6})).id != run.id
    stored["eval"]["sets"][0]["path"] = str(moved)
    with pytest.raises(BadInput, match=r"eval.sets: other: .*moved.txt holds something else now"):
        make_run(validated(stored))


def test_it_resumes(tiny, texts, trained):
    with RunDirectory(trained[2], trained[1].name) as directory:
        config = tiny({"eval.sets": sets(texts, "other", "half"), "eval.every": 6})
        again = train_run(make_run(config), directory)
    assert again["loss/other"] == trained[0]["loss/other"]


def test_the_headline_is_what_a_run_is_measured_by(tiny, texts, trained, tmp_path):
    changes = {"eval.sets": sets(texts, "other"), "eval.headline": "other"}
    result, _ = fit(tiny(changes), tmp_path)
    assert result["loss"] == result["loss/other"] == trained[0]["loss/other"]
    assert result["bits_per_byte"] == result["bits_per_byte/other"]
    assert result["loss/heldout"] == trained[0]["loss"]
    assert make_run(tiny(changes)).id != make_run(tiny({"eval.sets": sets(texts, "other")})).id


@pytest.fixture(scope="module")
def ids(tmp_path_factory):
    """The files of ids that nanoGPT prepares, and all of them in one."""
    folder = tmp_path_factory.mktemp("ids")
    rng = np.random.default_rng(0)
    tokens = np.cumsum(rng.integers(0, 3, 20_000)) % 65
    cut = len(tokens) - round(len(tokens) * 0.1)
    for name, part in (("train", tokens[:cut]), ("val", tokens[cut:]), ("all", tokens)):
        part.astype(np.uint16).tofile(folder / f"{name}.bin")
    return folder


def test_a_headline_that_an_ancestor_was_trained_on_is_told(tiny, corpus, texts, trained, tmp_path):
    headline = {"eval.headline": "v", "data.heldout": None, "init.run": str(trained[1])}

    def rules(path, **more):
        own = {"data.path": str(texts / "other.txt"), "eval.sets": [{"name": "v", "path": path}]}
        return make_run(tiny(headline | own | more)).facts["rules"]

    assert re.search(r"eval.headline: [78]\d% of that set was trained on", rules(str(corpus)))
    fresh = tmp_path / "fresh.txt"
    fresh.write_text((texts / "other.txt").read_text()[::-1])
    assert "was trained on" not in rules(str(fresh))
    assert "was trained on" not in rules(str(corpus), **{"init.run": None})


def test_prepared_files_of_ids_are_used_as_they_are(tiny, ids, tmp_path):
    """Trained on all of train.bin and measured on val.bin, a run is the one whose tail is val."""
    data = {"data.vocab": 65, "data.context": 16}
    whole = {"data.path": str(ids / "all.bin"), "data.heldout": 0.1}
    one, _ = fit(tiny({**data, **whole}), tmp_path)
    parts = {"data.path": str(ids / "train.bin"), "data.heldout": None, "eval.headline": "val"}
    parts["eval.sets"] = [{"name": "val", "path": str(ids / "val.bin")}]
    other, _ = fit(tiny({**data, **parts}), tmp_path)
    assert other["loss"] == one["loss"] == other["loss/val"]
    assert other["train_loss"] == one["train_loss"]
    assert "loss/heldout" not in other
    assert "bits_per_byte" not in other
    less, _ = fit(tiny({**data, **parts, "data.heldout": 0.5}), tmp_path)
    assert less["loss"] != one["loss"]  # the twin: half of the ids is not trained on


def test_every_source_of_a_mixture_is_a_set(tiny, corpus, texts, tmp_path):
    paths = [str(corpus), str(texts / "other.txt")]
    changes = {"data.name": "mixture", "data.paths": paths, "data.weights": [3.0, 1.0]}
    changes |= {"data.heldout": 0.3, "eval.sets": [
        {"name": f"source{i}", "path": path} for i, path in enumerate(paths)
    ]}  # fmt: skip
    config, wrong = override(load_config("configs/lm_transformer.py")[0], changes)
    assert not wrong
    base = tiny()
    config = validated({**base, "data": config["data"] | {"context": 32}, "eval": config["eval"]})
    config["eval"] |= {"examples": 16, "batch": 8, "every": 0}
    run = make_run(config)
    assert [one.name for one in run.sets] == ["source0", "source1"]
    first, second = (one.data.heldout for one in run.sets)
    assert first.corpus is run.data.train.parts[0].corpus
    assert second.corpus is run.data.train.parts[1].corpus
    result, _ = fit(config, tmp_path)
    assert len({result[f"loss/{name}"] for name in ("heldout", "source0", "source1")}) == 3


def table(path, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([["a", "b", "y"], *rows])
    return str(path)


def config_of(name, changes):
    config, wrong = override(load_config(f"configs/{name}.py")[0], changes)
    assert not wrong, wrong
    return validated(config)


@pytest.mark.parametrize("kind", ["numbers", "classes"])
def test_a_table_is_read_on_the_scale_of_the_training_rows(kind, tmp_path):
    rng = np.random.default_rng(1)
    x = rng.normal(5, 3, (200, 2)).round(6)
    y = (x @ [1.0, -2.0]).round(6) if kind == "numbers" else np.where(x[:, 0] > 5, "up", "down")
    rows = [[*map(float, a), b] for a, b in zip(x, y)]
    whole = {"data.path": table(tmp_path / "all.csv", rows), "data.target": ["y"]}
    whole |= {"data.kind": kind, "data.heldout": 0.3, "horizon.amount": 3.0}
    if kind == "classes":
        whole["task.name"] = "classification"
    plain = make_run(config_of("mlp_diabetes", whole))
    again = {"name": "again", "path": str(tmp_path / "all.csv")}
    run = make_run(config_of("mlp_diabetes", {**whole, "eval.sets": [again]}))
    (one,) = run.sets
    found = one.data.heldout.rows(np.arange(200))
    parts = [plain.data.train, plain.data.heldout]
    expected = np.concatenate([part.rows(np.arange(len(part)))["inputs"] for part in parts])
    np.testing.assert_allclose(
        np.sort(found["inputs"], axis=0), np.sort(expected, axis=0), rtol=1e-6, atol=1e-6
    )
    assert run.facts["overlap/again"] == pytest.approx(len(plain.data.train) / 200)
    few = {"name": "few", "path": table(tmp_path / "few.csv", rows[:7])}
    result, _ = fit(config_of("mlp_diabetes", {**whole, "eval.sets": [few]}), tmp_path / "w")
    assert result["loss/few"] != result["loss"]
    (("accuracy/few" if kind == "classes" else "mae/few") in result) or pytest.fail("no column")
    wrong = {"name": "few", "path": table(tmp_path / "odd.csv", [[1, 2, "other"]] * 3)}
    with pytest.raises(BadInput, match=r"eval.sets: few: "):
        make_run(config_of("mlp_diabetes", {**whole, "eval.sets": [wrong]}))


def test_documents_of_classes_and_images_are_read_as_those_trained_on(tmp_path):
    rng = np.random.default_rng(2)
    for part, n in (("train", 40), ("val", 8)):
        lines = [
            {"text": f"{label} " * 12 + str(rng.integers(10**9)), "label": label}
            for label in ("good", "bad") for _ in range(n)
        ]  # fmt: skip
        (tmp_path / f"{part}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    changes = {"data.path": str(tmp_path / "train.jsonl"), "data.context": 64, "init.run": None}
    changes |= {"data.label_field": "label", "data.field": "text", "data.classes": None}
    changes |= {"size": None, "model.width": 16, "model.depth": 1, "model.heads": 2}
    changes |= {"model.kv_heads": 2, "model.hidden": 32, "data.examples": None}
    changes |= {"eval.examples": None, "batch.size": 8}
    changes |= {"eval.sets": [{"name": "val", "path": str(tmp_path / "val.jsonl")}]}
    (one,) = make_run(config_of("text_classes", changes)).sets
    assert one.examples == len(one.data.heldout) >= 16
    assert set(one.data.heldout.classes.tolist()) == {0, 1}
    lines = '{"text": "x y z", "label": "other"}'
    (tmp_path / "val.jsonl").write_text(lines)
    with pytest.raises(BadInput, match=r"eval.sets: val: .* class 'other' of no training document"):
        make_run(config_of("text_classes", changes))
    pixels = rng.integers(0, 256, (60, 16, 16), np.uint8)
    labels = np.arange(60) % 3
    np.savez(tmp_path / "all.npz", x=pixels, y=labels)
    np.savez(tmp_path / "few.npz", x=pixels[:9], y=labels[:9])
    images = {"data.path": str(tmp_path / "all.npz"), "data.heldout": 0.3, "data.resize": None}
    images |= {"eval.sets": [{"name": "few", "path": str(tmp_path / "few.npz")}]}
    run = make_run(
        config_of(
            "cnn_digits", {**images, "data.examples": None, "batch.size": 8, "eval.examples": None}
        )
    )
    found = run.sets[0].data.heldout.rows(np.arange(9))
    np.testing.assert_array_equal(found["targets"], labels[:9])
    own = run.data.train.rows(np.arange(len(run.data.train)))["inputs"]
    assert any((found["inputs"][0] == image).all() for image in own) or run.facts["overlap/few"] < 1
    assert 0 < run.facts["overlap/few"] < 1


def test_vmapped_members_have_the_sets_that_they_have_alone(tiny, texts, tmp_path):
    from research.training.vmapped_runs import train_vmapped

    changes = {"eval.sets": sets(texts, "other"), "horizon.amount": 4.0}
    runs = [make_run(tiny({**changes, "seed": seed})) for seed in (0, 1)]
    directories = [RunDirectory(tmp_path, run.id) for run in runs]
    with directories[0], directories[1]:
        results = train_vmapped(list(zip(runs, directories)), [run.id for run in runs])
    alone, _ = fit(tiny({**changes, "seed": 1}), tmp_path / "alone")
    assert results[runs[1].id]["loss/other"] == pytest.approx(alone["loss/other"], rel=1e-5)
    losses = {result["loss/other"] for result in results.values()}
    assert len(losses) == 2


def test_the_best_state_may_be_that_of_a_set(tiny, texts, tmp_path):
    changes = {"eval.sets": sets(texts, "other"), "eval.every": 4, "save.best": "loss/other"}
    result, path = fit(tiny(changes), tmp_path)
    scores = [r["loss/other"] for r in metrics_log.read_records(path) if "loss/other" in r]
    assert result["best_score"] == min(scores)
    with pytest.raises(BadInput, match=r"save.best: 'loss/none'; expected one of .*loss/other"):
        make_run(tiny({**changes, "save.best": "loss/none"}))


def test_a_law_may_be_of_a_set(tmp_path):
    from experiments import fit as command

    rows = [["run", "params", "loss", "loss/val"]]
    rows += [[f"r{i}", n, 2 + 5 * n**-0.3, 3 + 9 * n**-0.4]
             for i, n in enumerate(np.geomspace(1e4, 1e7, 12))]  # fmt: skip
    path = tmp_path / "runs.csv"
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)
    limits = []
    for flags in ([], ["--response=loss/val"]):
        out = tmp_path / f"out{len(flags)}"
        argv = [f"--runs={path}", f"--out={out}", "--law=power", "--bootstrap=0", *flags]
        assert command.main(argv) == 0
        limits.append(json.loads((out / "fit.json").read_text())["params"]["E"])
    assert limits == pytest.approx([2, 3], rel=0.02)
    with pytest.raises(BadInput, match="--response=x: --columns names loss, too"):
        command.main([*argv[:2], "--response=x", "--columns=loss=y"])
    words = r"no column 'vall', nor 'loss/vall'; did you mean 'loss/val'\?; there are "
    with pytest.raises(BadInput, match=words):
        command.main([*argv[:2], "--law=power", "--response=loss/vall"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"eval.sets": "val.bin"}, r"eval.sets: 'val.bin' is no list of objects; expected a list"),
        ({"eval.sets": []}, "eval.sets: 0 sets; expected 1 to 8, or none"),
        ({"eval.sets": [{"name": "a b", "path": "x"}]}, "eval.sets: 'a b' names a set; expected"),
        ({"eval.sets": [{"name": "heldout", "path": "x"}]}, "and not heldout"),
        ({"eval.sets": [{"name": "v"}]}, "eval.sets: v: path is None; expected a file"),
        ({"eval.sets": [{"name": "v", "path": "x", "part": 1}]}, "v: has a key 'part'; expected"),
        ({"eval.sets": [{"name": "v", "path": "x"}] * 2}, "v: is the name of two sets"),
        ({"eval.sets": [{"name": "v", "path": "x", "examples": 0}]}, "v: examples is 0; expected"),
        ({"eval.headline": "heldout"}, "eval.headline: 'heldout', but there are no eval.sets"),
        (
            {"eval.headline": "val", "eval.sets": [{"name": "v", "path": "x"}]},
            "eval.headline: 'val'; expected one of heldout, v, or none",
        ),
    ],
)
def test_what_is_no_set_is_refused_before_the_data_are_read(tiny, changes, words):
    with pytest.raises(BadInput, match=words):
        tiny(changes)


def test_what_cannot_be_evaluated_is_refused(tiny, texts, tmp_path):
    def made(name, content, **changes):
        path = tmp_path / name
        path.write_bytes(content)
        return tiny({"eval.sets": [{"name": "v", "path": str(path)}], **changes})

    with pytest.raises(BadInput, match=r"eval.sets: v: .*short.txt: 5 tokens; .* at least 33"):
        make_run(made("short.txt", b"short"))
    with pytest.raises(BadInput, match=r"eval.sets: v: .*x.bin: id 999 at position 0"):
        make_run(made("x.bin", np.full(100, 999, np.uint16).tobytes()))
    with pytest.raises(BadInput, match=r"eval.sets: v: .*none.txt: No such file"):
        make_run(tiny({"eval.sets": [{"name": "v", "path": str(tmp_path / "none.txt")}]}))
    with pytest.raises(
        BadInput, match=r"eval.sets: v: .*: expected stdlib, packages, or a .txt, .jsonl"
    ):
        make_run(made("x.doc", b"x" * 100))
    with pytest.raises(BadInput, match=r"eval.sets: other: 9999 examples, but there are"):
        make_run(tiny({"eval.sets": sets(texts, "other", examples=9999)}))
    with pytest.raises(BadInput, match=r"data.heldout: none holds nothing out; expected a share"):
        make_run(tiny({"data.heldout": None, "eval.examples": None}))
    linear = {"eval.sets": sets(texts, "other")}
    with pytest.raises(BadInput, match=r"data.name: linear is made here, and has no other files"):
        make_run(config_of("linear", linear))


def test_they_are_given_on_the_command_line(tiny, texts, tmp_path, capsys):
    from experiments import train

    path = tmp_path / "config.json"
    path.write_text(json.dumps(tiny({"horizon.amount": 2.0})))
    value = json.dumps(sets(texts, "other"))
    argv = [f"--config={path}", f"--workdir={tmp_path / 'w'}", f"--config.eval.sets={value}"]
    assert train.main(argv) == 0
    (row,) = read_table(tmp_path / "w")
    assert row["loss/other"] > 0
    assert "eval.sets: other: " in capsys.readouterr().out
    with pytest.raises(BadInput, match=r"eval.sets: '\{'; expected a list of objects"):
        train.main([*argv[:2], "--config.eval.sets={"])
