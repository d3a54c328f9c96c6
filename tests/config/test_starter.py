"""`isoflop init` writes a config for data of one's own, whose sweep can be planned."""

import tomllib
from pathlib import Path

import numpy as np
import pytest

from experiments import doctor, init
from research.config.loading import load_config
from research.config.sweeps import problems_of_points, sweep_points
from research.errors import BadInput
from research.training.make_run import make_run

ROWS = [f"{i},{i * i % 7},{'ab'[i % 2]}" for i in range(200)]


def picture(path):
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(abs(hash(path.name)) % 100).integers(0, 255, (9, 9), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def data(tmp_path, corpus):
    (tmp_path / "own.txt").write_text(corpus.read_text())
    np.arange(50_000, dtype=np.uint16).tofile(tmp_path / "ids.bin")
    (tmp_path / "table.csv").write_text("\n".join(["x,y,kind", *ROWS]))
    np.savez(tmp_path / "a.npz", x_train=np.zeros((40, 8, 8), np.uint8),
             y_train=np.arange(40) % 2)  # fmt: skip
    for kind in "ab":
        for i in range(60):
            picture(tmp_path / "images" / kind / f"{i}.png")
        (tmp_path / "texts" / kind).mkdir(parents=True)
        for i in range(40):
            (tmp_path / "texts" / kind / f"{i}.txt").write_text(f"{kind * 30} {i} " * 20)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "flags", "expected"),
    [
        ("own.txt", [], {"tokenizer": "bytes", "context": 128}),
        ("own.txt", ["--vocab=300"], {"tokenizer": "bpe", "vocab": 300}),
        ("table.csv", ["--target=y"], {"kind": "numbers", "columns": ["x"]}),
        ("table.csv", ["--target=kind"], {"kind": "classes", "columns": None}),
        ("images", [], {"name": "images", "resize": 32}),
        ("texts", [], {"name": "text_classes"}),
        ("a.npz", [], {"resize": None}),
        ("ids.bin", [], {"vocab": None}),
    ],
)
def test_the_config_is_of_the_data_and_its_sweep_is_sound(name, flags, expected, data, capsys):
    init.main([f"--out={data / 'new'}", f"--data={data / name}", *flags])
    written = data / "new" / "experiment.py"
    config, module = load_config(str(written))
    assert expected.items() <= config["data"].items()
    assert config["data"]["path"] == str(data / name)
    points = sweep_points(config, module, "sweep")
    assert len(points) >= 4
    assert f"{len(points)} runs" in capsys.readouterr().out
    if name in ("own.txt", "table.csv", "images", "texts"):
        assert make_run(points[0][1]).steps > 0
    with pytest.raises(BadInput, match="is there already"):
        init.main([f"--out={data / 'new'}", f"--data={data / name}", *flags])


@pytest.mark.parametrize(
    ("name", "flags", "words"),
    [
        ("nothing.txt", [], "no such file"),
        ("table.csv", [], "no --target; expected .* of x, y, kind"),
        ("table.csv", ["--target=z"], "--target=z: no such column"),
        ("own.txt", ["--target=z"], "is for a table"),
        ("own.txt", ["--vocab=256"], "expected 257 to 65536 tokens"),
        ("table.csv", ["--target=y", "--vocab=300"], "is of a text"),
        ("new.docx", [], "expected .txt"),
        ("empty", [], "a folder without images"),
    ],
)
def test_what_no_data_set_reads_is_refused_and_nothing_is_written(name, flags, words, data):
    (data / "empty").mkdir()
    (data / "new.docx").write_text("")
    with pytest.raises(BadInput, match=words):
        init.main([f"--out={data / 'new'}", f"--data={data / name}", *flags])
    assert not (data / "new").exists()


@pytest.mark.parametrize("vocab", [1024, 4096])
def test_a_larger_vocabulary_has_the_same_widths_and_as_many_tokens(vocab, data):
    """The sizes are those of the same transformers, of which none is rounded into another."""
    made = {}
    for name, flags in (("a", []), ("b", [f"--vocab={vocab}"])):
        init.main([f"--out={data / name}", f"--data={data / 'own.txt'}", *flags])
        module = load_config(str(data / name / "experiment.py"))[1]
        made[name] = module.SIZES, module.BUDGETS
    (sizes, budgets), (larger, dearer) = made.values()
    widths = [16, 24, 32, 48, 64]
    assert [b - a for a, b in zip(sizes, larger)] == pytest.approx(
        [2 * (vocab - 256) * width for width in widths], abs=1001
    )
    assert all(b > a for a, b in zip(budgets, dearer))


def test_what_is_wrong_with_every_point_is_said_once():
    lines = problems_of_points([("a", "x"), ("b", "x"), ("c", "y"), ("d", "x")])
    assert lines == ["point a and 2 others: x", "point c: y"]


def test_the_doctor_says_what_is_there_and_what_is_missing(monkeypatch, capsys):
    from research.planning import doctor as module

    doctor.main([])
    said = capsys.readouterr().out
    assert "devices             8 of cpu" in said
    assert "missing extras" not in said or "no " in said
    monkeypatch.setitem(module.EXTRAS, "report", (("altair", "nothing_of_this_name"), "charts"))
    doctor.main([])
    said = capsys.readouterr().out
    assert "no nothing_of_this_name" in said
    assert said.splitlines()[-1].startswith("missing extras: pip install -e '")
    assert "report" in said.splitlines()[-1].partition("[")[2]


def test_the_doctor_knows_the_packages_of_every_extra():
    from research.planning.doctor import EXTRAS

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    ours = {name: len(extras[name]) for name in extras.keys() - {"cuda", "tpu", "docs", "dev"}}
    assert {name: len(packages) for name, (packages, _) in EXTRAS.items()} == ours
