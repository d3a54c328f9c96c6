"""A config with a sweep for somebody's own data, as a file to be changed."""

from pathlib import Path

from research.config.loading import load_config
from research.config.sweeps import sweep_points
from research.errors import BadInput
from research.io import arrow, files

NAME = "experiment.py"
TEXT, TABLES, IMAGES = (".txt", ".jsonl", ".bin"), (".csv", ".tsv", ".parquet"), (".npz",)
FEW_BYTES = 4_000_000  # of text: of less, all that is held out is evaluated
BYTES, WIDTHS, LAYERS = 256, (16, 24, 32, 48, 64), 3  # what a text's sweep is made of
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")

HEAD = '''"""{about} Written by `isoflop init`; yours to change.

    isoflop sweep --config={config} --workdir={runs} --plan
    isoflop sweep --config={config} --workdir={runs}
    isoflop verify --runs={runs}

Any other key is one of configs/{base}.py; --config.KEY=VALUE overrides one for a launch.
"""

from configs import {base}
from research.config import grid
'''
LANGUAGE = """
BUDGETS = {budgets}  # FLOPs of a run; the plan says what all cost
SIZES = {sizes}  # parameters aimed at; they must bracket the best


def get_config():
    config = lm_transformer.get_config()
    config.name = {name!r}
    config.data.path = {path!r}
{vocab}    config.data.context = 128  # tokens that a prediction may look back on
    config.data.heldout = 0.125  # share of the text that is held out, by a hash of its content
    config.model.depth = 3  # fixed, so that width alone varies over the sizes
    config.horizon = {{"unit": "flops", "amount": BUDGETS[-1]}}
    config.eval.every = 0  # steps; 0 evaluates at the end alone
    config.eval.examples = {examples}  # validation sequences of an evaluation; none: all
    return config


def sweep(config):
    return grid.isoflop(BUDGETS, SIZES)  # every size at every budget
"""
TABULAR = """
SIZES = (50, 150, 500, 1500, 5000)  # parameters aimed at


def get_config():
    config = mlp_diabetes.get_config()
    config.name = {name!r}
    config.data.path = {path!r}
    config.data.target = [{target!r}]
    config.data.columns = {columns!r}  # read by the model, which takes numbers; none: all others
    config.data.kind = {kind!r}  # or {other!r}
    config.data.heldout = 0.25  # share of the rows that is held out
{task}    config.horizon = {{"unit": "epochs", "amount": 40.0}}
    return config


def sweep(config):
    return grid.ladder(SIZES, replicated=SIZES[2])  # and three seeds of the middle one: the noise
"""
PICTURED = """
SIZES = (2.1e3, 3.7e3, 8.2e3, 1.44e4, 3.2e4, 5.7e4, 1.27e5)  # parameters aimed at


def get_config():
    config = cnn_digits.get_config()
    config.name = {name!r}
    config.size = SIZES[3]
    config.model.update(width=None, depth=None, hidden=None)  # `size` fills them
    config.data.path = {path!r}
    config.data.resize = {resize}  # pixels of a side; none: as they are, which must be of one size
    config.data.heldout = 0.2  # share of the images that is held out
    config.data.shift = 2  # pixels, at random, in training
    config.data.flip = False  # left to right, at random, in training
    config.horizon = {{"unit": "epochs", "amount": 10.0}}
    config.eval.every = 0  # steps; 0 evaluates at the end alone
    return config


def sweep(config):
    return grid.ladder(SIZES, replicated=SIZES[3])  # and three seeds of the middle one: the noise
"""
CLASSES = """
SIZES = (17e3, 33e3, 77e3, 143e3)  # parameters aimed at


def get_config():
    config = text_classes.get_config()
    config.name = {name!r}
    config.data.path = {path!r}
    config.data.classes = None  # those with most text; none: all
    config.data.examples = None  # training windows of `context` tokens; none: all
    config.data.context = 128  # tokens of a text that are read
    config.horizon = {{"unit": "examples", "amount": 4e3}}
    config.eval.examples = None  # validation windows of an evaluation; none: all
    return config


def sweep(config):
    return grid.ladder(SIZES, replicated=SIZES[1])  # and three seeds of one: the noise
"""


def write(out: str, data: str, target: str | None = None, vocab: int | None = None) -> str:
    """Write OUT/experiment.py for `data`; returns what to do with it. `vocab` is how many tokens a
    byte-pair encoding of a text has. Raises BadInput for data that no data set reads, and for a
    file that is already there."""
    place, source = Path(out) / NAME, Path(data)
    if place.exists():
        raise BadInput(f"--out={out}: {place} is there already; remove it, or name another folder")
    if not source.exists():
        raise BadInput(f"--data={data}: no such file or folder")
    base, about, body, values = _template(source, target, vocab)
    if vocab is not None and (body is not LANGUAGE or source.suffix.lower() == ".bin"):
        raise BadInput(f"--vocab={vocab}: is of a text that is to be tokenized; {data} is none")
    if vocab is not None and not BYTES < vocab <= 1 << 16:
        raise BadInput(f"--vocab={vocab}: expected {BYTES + 1} to {1 << 16} tokens")
    if target is not None and body is not TABULAR:
        raise BadInput(f"--target={target}: is for a table; {data} is none")
    name = "".join(c if c.isalnum() else "_" for c in source.stem) or "own"
    facts = {"name": name, "path": str(source.resolve()), **values}
    head = HEAD.format(about=about, base=base, config=place, runs=Path(out) / "runs")
    files.make_directory(place.parent)
    files.write_atomic(place, (head + body.format(**facts)).encode())
    config, module = load_config(str(place))
    points = sweep_points(config, module, "sweep")
    where = f"--config={place} --workdir={Path(out) / 'runs'}"
    return (
        f"{place}\n{len(points)} runs; what they are and cost:\n  isoflop sweep {where} --plan\n"
        f"train them, fit and report:\n  isoflop sweep {where}"
    )


def _template(
    source: Path, target: str | None, of_words: int | None
) -> tuple[str, str, str, dict[str, object]]:
    """The config to begin from, what the file is about, its body and what fills that."""
    if source.is_dir():
        found = [path.suffix.lower() for path in sorted(source.rglob("*"))[:1000] if path.is_file()]
        if any(suffix in PICTURES for suffix in found):
            return (
                "cnn_digits",
                f"Networks of growing size on images, {source.name}.",
                PICTURED,
                {"resize": 32},
            )
        if any(suffix in (".txt", ".jsonl") for suffix in found):
            about = f"Classifiers of growing size on texts, {source.name}."
            return "text_classes", about, CLASSES, {}
        raise BadInput(f"--data={source}: a folder without images ({', '.join(PICTURES)}) or .txt")
    kind = source.suffix.lower()
    if kind in TEXT:
        vocab = (
            "    config.data.vocab = None  # of the ids in the file: one more than the largest\n"
        )
        words = '    config.data.tokenizer = "bytes"  # `isoflop init --vocab=1024` has a BPE\n'
        if of_words is not None:
            words = f'    config.data.tokenizer, config.data.vocab = "bpe", {of_words}\n'
        about = f"IsoFLOP sweep of language models on {source.name}."
        few = source.stat().st_size < FEW_BYTES
        facts = {"vocab": vocab if kind == ".bin" else words, "examples": None if few else 1024}
        return "lm_transformer", about, LANGUAGE, facts | _grid(of_words or BYTES)
    if kind in IMAGES:
        about = f"Networks of growing size on images, {source.name}."
        return "cnn_digits", about, PICTURED, {"resize": None}
    if kind in TABLES:
        return (
            "mlp_diabetes",
            f"Networks of growing size on {source.name}.",
            TABULAR,
            _table(source, target),
        )
    every = ", ".join((*TEXT, *TABLES, *IMAGES))
    raise BadInput(f"--data={source}: expected {every}, or a folder with one for each class")


def _grid(vocab: int) -> dict[str, object]:
    """The sizes of WIDTHS at a vocabulary, and budgets that train the middle one on as many tokens
    as at any other: the embedding and the head grow with the vocabulary, the head's FLOPs too."""
    middle, blocks = WIDTHS[len(WIDTHS) // 2], 12 * LAYERS
    more = (vocab + blocks * middle) / (BYTES + blocks * middle)
    sizes = [2 * vocab * width + blocks * width**2 for width in WIDTHS]
    budgets = [f"{x * more:.1e}".replace("e+", "e") for x in (2e11, 4.8e11, 1.2e12)]
    return {
        "budgets": f"({', '.join(budgets)})",
        "sizes": f"({', '.join(f'{n / 1e3:.0f}e3' for n in sizes)})",
    }


def _table(source: Path, target: str | None) -> dict[str, object]:
    """What of a table's header decides: the target, and whether it is a number or a class."""
    import pyarrow

    read = arrow.parquet if source.suffix.lower() == ".parquet" else arrow.csv
    table = read(source, f"--data={source}")
    if target not in table.column_names:
        there = ", ".join(table.column_names[:20])
        given = "no --target" if target is None else f"--target={target}: no such column"
        raise BadInput(f"{given}; expected the column to be predicted, of {there}")
    types = dict(zip(table.schema.names, table.schema.types, strict=True))
    numbers = {n for n, t in types.items()
               if pyarrow.types.is_integer(t) or pyarrow.types.is_floating(t)}  # fmt: skip
    others = [name for name in types if name != target]
    columns = None if numbers >= {*others} else [name for name in others if name in numbers]
    number = target in numbers
    kinds = ("numbers", "classes") if number else ("classes", "numbers")
    task = "" if number else '    config.task = {"name": "classification"}\n'
    return {
        "target": target,
        "columns": columns,
        "task": task,
        "kind": kinds[0],
        "other": kinds[1],
    }
