"""Linear regression against its closed form, MLPs against a known exponent, tables by column."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import data, models
from research.config import validation
from research.config.loading import load_config, validated
from research.data.sampling import is_heldout
from research.errors import BadInput
from research.io import files
from research.models import accounting, linear
from research.runs.directory import RunDirectory
from research.training.loop import train_run
from research.training.make_run import make_run
from tests.models.test_accounting import xla_dot_flops

pytestmark = pytest.mark.usefixtures("barely_optimized")


def fit(path, changes, workdir):
    config, problems = validation.override(load_config(path)[0], changes)
    assert not problems
    run = make_run(validated(config))
    with RunDirectory(workdir, run.id) as directory:
        return train_run(run, directory)


SGD = {
    "optim.optimizer.name": "sgd",
    "optim.optimizer.momentum": 0.9,
    "optim.optimizer.nesterov": False,
    "optim.optimizer.weight_decay": 0.0,
    "optim.lr": 0.3,
}


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_gradient_descent_reaches_the_closed_form(optimizer, tmp_path):
    changes = SGD if optimizer == "sgd" else {}
    result = fit("configs/linear.py", changes, tmp_path)
    assert result["closed_form_distance"] < 1e-4
    assert result["loss"] == pytest.approx(result["closed_form_loss"], abs=1e-4)
    assert 0.9 < result["loss"] < 1.1  # the variance of the noise
    stopped = fit("configs/linear.py", {**changes, "horizon.amount": 20.0}, tmp_path / "short")
    assert stopped["closed_form_distance"] > 1e-2


def test_the_closed_form_is_that_of_the_line():
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(50, 1))
    params = linear.solve({"inputs": x, "targets": 3 * x + 2})
    np.testing.assert_allclose(params["linear"]["kernel"], [[3.0]], rtol=1e-10)
    np.testing.assert_allclose(params["linear"]["bias"], [2.0], rtol=1e-10)


def test_columns_that_depend_on_each_other_do_no_harm():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 3))
    y = x @ np.array([[1.0], [2.0], [-1.0]]) + 0.5
    twice = np.concatenate([x, x[:, :1], np.ones((40, 1))], axis=1)  # and a constant one
    params = linear.solve({"inputs": twice, "targets": y})["linear"]
    np.testing.assert_allclose(twice @ params["kernel"] + params["bias"], y, atol=1e-9)
    assert np.abs(params["kernel"]).max() < 10
    np.testing.assert_allclose(params["kernel"][0], params["kernel"][3])  # least norm: shared
    design = np.concatenate([twice, np.ones((40, 1))], axis=1)
    assert np.linalg.matrix_rank(design.T @ design) < design.shape[1]  # what an inverse would meet
    wide = linear.solve({"inputs": x[:2], "targets": y[:2]})["linear"]  # fewer rows than columns
    np.testing.assert_allclose(x[:2] @ wide["kernel"] + wide["bias"], y[:2], atol=1e-9)


FACTS = {"features": 7, "outputs": 3}


@pytest.mark.parametrize(
    "fields", [{"width": 5, "depth": 1}, {"width": 6, "depth": 3, "activation": "tanh"}]
)
def test_an_mlp_is_its_formula_and_its_flops_are_those_of_xla(fields):
    model = models.build("mlp", **FACTS, **{"activation": "relu", **fields})
    x = np.random.default_rng(0).normal(size=(4, 7)).astype(np.float32)
    params = model.init(jax.random.key(0), x)
    act = {"relu": lambda a: np.maximum(a, 0), "tanh": np.tanh}[model.spec.activation]
    y = x
    for i in range(fields["depth"]):
        layer = params[f"hidden{i}"]
        y = act(y @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"]))
    y = y @ np.asarray(params["head"]["kernel"]) + np.asarray(params["head"]["bias"])
    np.testing.assert_allclose(model.apply(params, x), y, rtol=1e-5, atol=1e-6)

    def loss(params):
        return jnp.mean(model.apply(params, x) ** 2)

    text = jax.jit(jax.value_and_grad(loss)).lower(params).compile().as_text()
    assert xla_dot_flops(text) == accounting.step_flops(model, batch=4)
    parts = model.forward_flops()
    assert accounting.step_flops(model, batch=4) != 3 * 4 * sum(parts.values())


def test_every_width_is_larger_than_the_one_below():
    inputs = jax.ShapeDtypeStruct((1, 7), jnp.float32)
    counts = [
        accounting.params(
            models.build(
                "mlp", **FACTS, depth=1, activation="relu", **models.family("mlp").nth_size(i)
            ),
            inputs,
        )["params"]
        for i in (1, 2, 3, 63, 64, 65, 127, 128, 129)
    ]
    assert counts == sorted(set(counts))


def test_the_teacher_leaves_what_its_spectrum_says():
    made = data.load(
        "teacher", features=16, exponent=1.0, examples=20_000, heldout=8, generator_seed=0
    )
    rows = made.train.rows(np.arange(20_000))
    x, y = rows["inputs"].astype(np.float64), rows["targets"].astype(np.float64)
    assert np.mean(y**2) == pytest.approx(1.0, rel=0.02)
    solution = np.linalg.lstsq(x, y, rcond=None)[0]
    left = np.linalg.svd(solution)[1] ** 2 / 16
    shares = np.arange(1, 17) ** -2.0 / (np.pi**2 / 6)
    np.testing.assert_allclose(left, shares, rtol=0.1)
    assert np.mean((y - x @ solution) ** 2) == pytest.approx(1 - shares.sum(), rel=0.05)


CSV = "a,b,flag,y,label\n" + "\n".join(
    f"{i},{i * i % 7}.5,{'true' if i % 2 else 'false'},{3 * i + 1},{'xyz'[i % 3]}"
    for i in range(60)
)
COLUMNS = {"target": ["y"], "columns": ["a", "b", "flag"], "kind": "numbers"}
TABLE = {**COLUMNS, "standardize": True, "heldout": 0.25}


def table(path, **changes):
    return data.load("table", path=str(path), **TABLE | changes)


@pytest.fixture
def csv(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(CSV)
    return path


def test_a_table_is_standardized_by_its_training_rows(csv):
    made, raw = table(csv), table(csv, standardize=False)
    rows, plain = (d.train.rows(np.arange(len(d.train))) for d in (made, raw))
    for key in ("inputs", "targets"):
        np.testing.assert_allclose(rows[key].mean(0), 0, atol=1e-6)
        np.testing.assert_allclose(rows[key].std(0), 1, rtol=1e-5)
        assert np.abs(plain[key].mean(0)).max() > 0.1
    held = made.heldout.rows(np.arange(len(made.heldout)))
    assert np.abs(held["targets"].mean()) > 1e-4
    scale = made.notes["target_scale"]
    np.testing.assert_allclose(rows["targets"] * scale, plain["targets"] - plain["targets"].mean(0),
                               rtol=1e-4, atol=1e-3)  # fmt: skip
    assert made.facts == {"features": 3, "outputs": 1}
    assert made.digest != raw.digest


def test_csv_and_parquet_are_one_table_and_the_order_of_rows_does_not_matter(csv, tmp_path):
    import pyarrow.csv
    import pyarrow.parquet

    content = pyarrow.csv.read_csv(csv)
    pyarrow.parquet.write_table(content, tmp_path / "t.parquet")
    assert table(tmp_path / "t.parquet").digest == table(csv).digest
    lines = CSV.splitlines()
    (tmp_path / "r.csv").write_text("\n".join([lines[0], *lines[:0:-1]]))
    reverse, made = table(tmp_path / "r.csv", standardize=False), table(csv, standardize=False)
    sets = [
        {tuple(row) for row in d.heldout.rows(np.arange(len(d.heldout)))["inputs"].tolist()}
        for d in (made, reverse)
    ]
    assert sets[0] == sets[1]
    assert table(csv, heldout=0.5).digest != table(csv).digest


def test_equal_rows_are_on_one_side(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(CSV + "\n" + "\n".join(CSV.splitlines()[1:]))
    made = table(path, standardize=False)
    rows = [
        {tuple(r) for r in d.rows(np.arange(len(d)))["inputs"].tolist()}
        for d in (made.train, made.heldout)
    ]
    assert not rows[0] & rows[1]
    assert len(made.heldout) > len(rows[1])


def test_a_column_of_classes(csv):
    made = table(csv, target=["label"], kind="classes", columns=["a", "b"])
    assert made.targets == "classes"
    assert made.notes["class_names"] == ["x", "y", "z"]
    assert made.facts["outputs"] == made.facts["classes"] == 3
    assert made.train.rows(np.arange(3))["targets"].dtype == np.int32


LABELS = {"target": ["label"], "kind": "classes", "columns": ["a", "b"]}


def test_spaces_around_a_label_make_no_class(csv, tmp_path, caplog):
    made = table(csv, **LABELS)
    assert not caplog.text
    path = tmp_path / "spaced.csv"
    path.write_text(CSV.replace(",x\n", ", x\n", 1).replace(",y\n", ",y \n", 1))
    spaced = table(path, **LABELS)
    assert spaced.notes["class_names"] == made.notes["class_names"]
    assert spaced.digest == made.digest
    assert "spaces around labels are not read: ' x', 'y '" in caplog.text


@pytest.mark.parametrize("label", ["", "  ", "NA", "nan", "N/A", "null"])
def test_a_label_that_is_missing_is_no_class(label, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(CSV.replace(",x\n", f",{label}\n", 1))
    row = CSV.splitlines().index(next(x for x in CSV.splitlines() if x.endswith(",x")))
    with pytest.raises(BadInput, match=rf"column 'label' has 1 label.* in row {row};"):
        table(path, **LABELS)


def test_a_word_that_may_be_a_class_is_one_and_told(tmp_path, caplog):
    path = tmp_path / "t.csv"
    path.write_text(CSV.replace(",x\n", ",none\n"))
    assert "none" in table(path, **LABELS).notes["class_names"]
    assert "'none' is taken for a class" in caplog.text


def rare_is_heldout(row):
    """Whether a row whose label is the first by name, after which x, y, z come, is held out."""
    features = np.array(row[:2], np.float64)
    return is_heldout(
        bytes.fromhex(files.digest(features.tobytes(), np.float64(0).tobytes())), 0.25
    )


def test_a_class_that_nothing_is_trained_on_is_refused(csv, tmp_path, caplog):
    """Of a label that occurs once the row is on one side: refused on the one, told on the other."""
    ends = set()
    for k in range(40):
        path = tmp_path / f"{k}.csv"
        path.write_text(CSV.rstrip("\n") + f"\n{100 + k},{k},true,1.5,rare\n")
        caplog.clear()
        row = 100 + k, k, True, 1.5
        if rare_is_heldout(row):
            with pytest.raises(BadInput, match=r"1 classes \('rare'\) of .* no row to train on"):
                table(path, **LABELS)
            ends.add("refused")
        else:
            assert "rare" in table(path, **LABELS).notes["class_names"]
            assert "1 classes ('rare') of" in caplog.text
            ends.add("told")
    assert ends == {"refused", "told"}


@pytest.mark.parametrize(
    ("content", "changes", "words"),
    [
        (CSV, {"target": ["z"]}, "data.target: .* has no column 'z'; there are a, b, flag, y"),
        (CSV, {"columns": ["q"]}, "data.columns: .* has no column 'q'"),
        (CSV, {"columns": None}, r"column 'label' holds string \('x'\), expected numbers"),
        (CSV, {"columns": ["y"]}, "data.columns: 'y' is the target too"),
        (CSV, {"target": []}, "data.target: empty"),
        (CSV, {"target": ["y", "a"], "kind": "classes"}, "classes are one column"),
        (CSV, {"columns": []}, "data.columns: none left"),
        (CSV.replace("\n5,", "\n,"), {}, "column 'a' has 1 missing or infinite values, .* row 6"),
        (CSV.replace("\n5,", "\ninf,"), {}, "column 'a' has 1 missing or infinite values"),
        (CSV.replace("\n5,", "\nfive,"), {}, r"column 'a' holds string \('five'\), .* row 6"),
        ("a,a,y\n1,2,3\n", {}, "more than one column is named 'a'"),
        ("a,b,flag,y\n", {}, "the table has no rows"),
        ("a,b,flag,y\n1,2,true,3\n", {}, "leaves . to train on and . held out"),
        ("a,b\n1,2\n3\n", {}, "not a table"),
        ("", {}, "not a table"),
        ("\xff\xfe\0", {}, "not a table|no column"),
    ],
)
def test_bad_tables_are_reported(tmp_path, content, changes, words):
    path = tmp_path / "t.csv"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(BadInput, match=words):
        table(path, **changes)


def test_all_unusable_columns_are_reported_together(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b,c,y\n1,x,,2\n2,y,3,4\n")
    with pytest.raises(BadInput) as error:
        table(path, columns=None)
    assert len(error.value.problems) == 2


def test_names_of_columns_may_have_spaces_around_them(tmp_path, csv):
    path = tmp_path / "T.TSV"
    path.write_text(CSV.replace(",", "\t").replace("\t", "\t ", 4))
    assert path.read_text().startswith("a\t b\t flag\t y\t label")
    assert table(path).digest == table(csv).digest


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_read_from_the_header(csv, tmp_path, delimiter):
    path = tmp_path / "d.csv"
    path.write_text(CSV.replace(",", delimiter))
    assert table(path).digest == table(csv).digest


def test_a_missing_file_and_another_kind_are_reported(tmp_path):
    with pytest.raises(BadInput, match="No such file"):
        table(tmp_path / "no.csv")
    (tmp_path / "t.xlsx").write_text("a")
    with pytest.raises(BadInput, match=r"expected diabetes, or a .csv or .parquet"):
        table(tmp_path / "t.xlsx")


def test_diabetes_is_a_real_table():
    pytest.importorskip("sklearn", reason="scikit-learn is the extra `data`")
    made = table("diabetes", target=["progression"], columns=None)
    assert len(made.train) + len(made.heldout) == 442
    assert made.facts == {"features": 10, "outputs": 1}


def test_what_does_not_fit_together_is_reported_before_anything_is_compiled(tiny, csv):
    config, problems = validation.override(
        load_config("configs/linear.py")[0], {"task.name": "classification"}
    )
    assert not problems
    with pytest.raises(BadInput, match=r"task.name: classification measures classes, .* numbers"):
        make_run(validated(config))
    config = tiny({"task.name": "regression"})
    with pytest.raises(BadInput, match="expected language_modeling"):
        make_run(config)
