"""Text from a trained language model.

python -m experiments.generate --runs=DIR --prompt="def " --tokens=200 --temperature=0.8

DIR is a run, WORKDIR/runs/<id>, or a WORKDIR: of its runs, --run=ID is taken, else the language
model with the lowest loss. Of a run on token ids (a .bin), prompt and text are ids.
"""

import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from research import cli, files, records
from research.data import tokenizers
from research.errors import BadInput

# flag: default, whether a value is good, what is
FLAGS = {
    "prompt": ("", len, "what the text begins with, at least one token"),
    "tokens": (200, lambda n: n >= 1, "a whole number of at least 1"),
    "temperature": (0.8, lambda t: 0 <= t < float("inf"), "a number of at least 0; 0 is greedy"),
    "top_k": (40, lambda k: 0 <= k < 2**31, "a whole number of at least 0; 0 is all tokens"),
    "top_p": (0.95, lambda p: 0 < p <= 1, "a number above 0 and at most 1; 1 is all tokens"),
    "seed": (0, lambda n: 0 <= n < 2**32, "a whole number from 0 to below 2^32"),
    "samples": (1, lambda n: n >= 1, "a whole number of at least 1"),
}


def main(argv: Sequence[str]) -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("--runs", metavar="DIR", required=True)
    parser.add_argument("--run", metavar="ID")
    for name, (default, _, words) in FLAGS.items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help=words)
    args = parser.parse_args(argv)
    numbers = {name: getattr(args, name) for name in FLAGS}
    if bad := {name: value for name, value in numbers.items() if not FLAGS[name][1](value)}:
        raise BadInput(*(f"--{name}={bad[name]}: expected {FLAGS[name][2]}" for name in bad))
    del numbers["prompt"]  # it becomes ids
    path = chosen(args)
    kept, data = path / "tokenizer.json", files.read_json(path / "config.json").get("data")
    text = files.text(kept, tokenizers.LARGEST_FILE, follow=False) if kept.exists() else ""
    words = tokenizers.from_json(text)
    ids_alone = isinstance(data, dict) and str(data.get("path")).endswith(".bin") and not text
    if ids_alone and not args.prompt.replace(" ", "").isdecimal():
        raise BadInput(f"--prompt={args.prompt}: expected the ids of tokens, like '3 17'")
    prompt = [int(i) for i in (args.prompt.split() if ids_alone else words.encode(args.prompt))]

    from research import branch, generate  # jax from here on

    source, begun = branch.open_run(path), time.monotonic()
    made = generate.generate(source.model, source.params, prompt, **numbers)
    seconds = time.monotonic() - begun
    for sample in made.tolist():
        ids = prompt + sample
        print(*ids) if ids_alone else print(words.decode(ids).decode(errors="replace"))
    pace = f"{made.size / seconds:,.0f} per second with compilation"
    print(f"{made.size} tokens in {seconds:.1f} s, {pace}", file=sys.stderr)


def chosen(args: Namespace) -> Path:
    """The run's directory. Raises BadInput when there is none, or it is no language model."""
    path = Path(args.runs)
    if args.run or not (path / "config.json").is_file():
        rows = [r for r in records.table(path) if args.run in (None, r["run"])]
        texts = [r for r in rows if r.get("task") == "language_modelling"]
        ready = [r for r in texts if r["status"] == "done"] or texts[:1]
        if not ready:
            raise BadInput(f"{path}: no language model among its runs ({args.run or 'any'})")
        path = path / "runs" / min(ready, key=lambda r: r.get("loss", 0.0))["run"]
        print(f"run {path.name} of {len(rows)}", file=sys.stderr)
    if (task := records.row(path).get("task")) != "language_modelling":
        raise BadInput(f"{path}: its task is {task}; expected language_modelling")
    return path


if __name__ == "__main__":
    cli.run(main)
