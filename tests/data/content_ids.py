"""Data sets of every kind, written below a folder, and their digests: run by test_content_ids.py as
a program of its own, on what pretends to be another host."""

import gzip
import json
import os
import struct
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from research import data
from research.config.loading import load_config, validated
from research.config.validation import override
from research.training.make_run import make_run

TEXT = {"context": 16, "heldout": 0.25, "tokenizer": "bytes", "field": "text"}
CLASSES = {"label_field": "label", "classes": None, "examples": None}
IMAGES = {"examples": None, "resize": None, "shift": 1, "flip": False, "heldout": 0.25}
TABLE = {"columns": None, "target": ["y"], "kind": "numbers", "standardize": True, "heldout": 0.25}
TEACHER = {"features": 48, "exponent": 1.0, "examples": 300, "heldout": 30}
LINE = {"weights": [0.3] * 33, "bias": 0.1, "noise": 0.1, "examples": 300, "heldout": 30}
WORDS = ("the", "law", "of", "a", "loss", "is", "power", "its", "size", "and", "nothing", "else")


def documents(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, 30)) for _ in range(count)]


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def contents(seed: int) -> dict[str, bytes | np.ndarray]:
    """{path: content} of all files."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (24, 5, 5), np.uint8)
    labels = np.arange(24, dtype=np.uint8) % 2
    rows = [{"text": d, "label": "ab"[i % 2]} for i, d in enumerate(documents(40, seed))]
    table = ["x,z,y", *(",".join(f"{n:.17g}" for n in row) for row in rng.normal(size=(60, 3)))]
    out: dict[str, bytes | np.ndarray] = {
        "text.txt": "\n\n".join(documents(2000, seed)).encode(),
        "more.txt": "\n\n".join(documents(2000, seed + 7)).encode(),
        "rows.jsonl": "\n".join(map(json.dumps, rows)).encode(),
        "table.csv": "\n".join(table).encode(),
        # Both are there, and hold different images: one of them must be taken, always the same.
        "idx/train-images-idx3-ubyte": idx(pixels),
        "idx/train-images-idx3-ubyte.gz": gzip.compress(idx(255 - pixels)),
        "idx/train-labels-idx1-ubyte": idx(labels),
    }
    for i, row in enumerate(rows):
        out[f"classes/{row['label']}/{i}.txt"] = row["text"].encode()
    for i, image in enumerate(pixels):
        out[f"images/{'ab'[labels[i]]}/{i}.png"] = image
    return out


def write(folder: Path, seed: int, backwards: bool) -> None:
    """Write the files in one order or the other, dated now or long ago."""
    for name, content in sorted(contents(seed).items(), reverse=backwards):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            Image.fromarray(content).save(path)
        os.utime(path, (1e9, 1e9) if backwards else None)


def digests(folder: Path, seed: int) -> dict[str, str]:
    text, more, rows = (str(folder / name) for name in ("text.txt", "more.txt", "rows.jsonl"))
    bpe = {"tokenizer": "bpe", "vocab": 270}
    two = {"paths": [text, more], "weights": [1.0, 2.0]}
    loaded = {
        "text": data.load("text", path=text, vocab=None, **TEXT),
        "jsonl": data.load("text", path=rows, vocab=None, **TEXT),
        "bpe": data.load("text", path=text, **{**TEXT, **bpe}),
        "mixture": data.load("mixture", **two, **{**TEXT, **bpe}),
        "classes": data.load("text_classes", path=rows, **TEXT, **CLASSES),
        "classes in a folder": data.load(
            "text_classes", path=str(folder / "classes"), **TEXT, **CLASSES
        ),
        "images": data.load("images", path=str(folder / "images"), **IMAGES),
        "idx": data.load("images", path=str(folder / "idx"), **IMAGES),
        "table": data.load("table", path=str(folder / "table.csv"), **TABLE),
        "teacher": data.load("teacher", generator_seed=seed, **TEACHER),
        "linear": data.load("linear", generator_seed=seed, **LINE),
    }
    config, _ = load_config("configs/lm_transformer.py")
    config, problems = override(config, {"data.path": text, "eval.examples": None})
    assert not problems
    run = make_run(validated(config))
    return {name: dataset.digest for name, dataset in loaded.items()} | {"run": run.id}


if __name__ == "__main__":
    folder, backwards = Path(sys.argv[1]), sys.argv[2] == "backwards"
    out = []
    for seed in (0, 1):
        write(folder / str(seed), seed, backwards)
        out.append(digests(folder / str(seed), seed))
    print(json.dumps(out))
