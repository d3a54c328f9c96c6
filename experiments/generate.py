"""Generate text from a trained language model.

python -m experiments.generate --runs=DIR --prompt="def " --tokens=200 --temperature=0.8

DIR is a run, WORKDIR/runs/<id>, or a WORKDIR: of its runs, --run=ID is taken, else the language
model with the lowest loss. For a run on token ids (a .bin), prompt and text are ids. Instead of
--runs, --export=DIR takes what `isoflop export` wrote, with its --key_file and --verify, and
--export=hf:FOLDER a model in the layout of Hugging Face transformers.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from research.config import cli
from research.errors import BadInput, printable
from research.inference.sampling_flags import FLAGS, PLACES, check_numbers
from research.io import encryption
from research.report import run_table
from research.runs.table import read_row, read_table


def main(argv: Sequence[str]) -> None:
    parser = cli.parser(__doc__)
    for name, (metavar, words) in PLACES.items():
        parser.add_argument(f"--{name}", metavar=metavar, help=words)
    for name, (default, _, words) in FLAGS.items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help=words)
    args = parser.parse_args(argv)
    numbers: dict = {name: getattr(args, name) for name in FLAGS}
    bad = []
    if (args.runs is None) == (args.export is None):
        run = f"; --run={args.run} is the id of a run of --runs" if args.run else ""
        bad.append(f"expected --runs=DIR or --export=DIR{run}")
    check_numbers(numbers, "--", bad)
    path = chosen(args.runs, args.run) if args.runs else args.export
    key = encryption.load_key(args.key_file) if args.key_file else None

    from research.data import tokenizers
    from research.inference import export, generate
    from research.inference.load import open_run  # jax from here on
    from research.parallel import jax_settings

    jax_settings.fix()
    opened = open_run(path) if args.runs else export.open_export(path, key, args.verify)
    words = tokenizers.from_json(opened.tokenizer)
    if opened.of_ids and not args.prompt.replace(" ", "").isdecimal():
        raise BadInput(f"--prompt={args.prompt}: expected the ids of tokens, like '3 17'")
    prompt = [int(i) for i in (args.prompt.split() if opened.of_ids else words.encode(args.prompt))]
    numbers["prompt"], begun = prompt, time.monotonic()
    samples = generate.generate(opened.model, opened.params, **numbers)
    seconds = time.monotonic() - begun
    for sample in samples.tolist():
        ids = prompt + sample
        print(*ids) if opened.of_ids else print(sanitize_for_terminal(words.decode(ids)))
    pace = f"{samples.size / seconds:,.0f} per second with compilation"
    print(f"{samples.size} tokens in {seconds:.1f} s, {pace}", file=sys.stderr)


def sanitize_for_terminal(text: str | bytes) -> str:
    """`text` as it is printed: without control sequences if stdout is a terminal."""
    text = text.decode(errors="replace") if isinstance(text, bytes) else text
    return printable(text, keep="\n\t") if sys.stdout.isatty() else text


def chosen(runs: str, run: str | None = None) -> Path:
    """The directory of a language model: `runs` itself, or of a workdir `run`, else the best.
    Raises BadInput when there is none, or it is no language model."""
    path = Path(runs)
    if run or not (path / "config.json").is_file():
        rows = [r for r in read_table(path) if run in (None, r["run"])]
        if (name := run_table.best_run(rows, "language_modeling")) is None:
            raise BadInput(f"{path}: no finished language model ({run or 'expected a workdir'})")
        path = path / "runs" / name
        print(f"run {name} of {len(rows)}", file=sys.stderr)
    if (task := read_row(path).get("task")) != "language_modeling":
        raise BadInput(f"{path}: its task is {task}; expected language_modeling")
    return path


if __name__ == "__main__":
    cli.run(main)
