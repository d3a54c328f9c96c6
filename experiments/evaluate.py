"""Score the trained language models of a workdir on tasks; the scores become columns of its table.

  python -m experiments.evaluate --runs=DIR --tasks=copy,brackets,arithmetic,cloze
  python -m experiments.evaluate --runs=DIR --run=ID --tasks=all --items=2000
  python -m experiments.evaluate --runs=DIR --tasks=mine --include_path=FOLDER

DIR is the workdir of a sweep, or one run. The suite needs no download: cloze (how held-out text
continues), copy, repetition, brackets, arithmetic. Other names are lm-eval tasks, its own or those
of YAML files in --include_path. The answer is the likeliest option. Existing scores with the same
parameters and options are kept, so an interrupted command resumes. `table` shows the columns
score/TASK, and `fit --downstream=score/TASK` fits their laws.
"""

import os
from collections.abc import Sequence
from importlib.util import find_spec

from research.config import cli, stop_signal
from research.errors import UNFINISHED, BadInput

# flag: default, whether a value is good, what is
FLAGS = {
    "items": (None, lambda n: n is None or 2 <= n <= 1_000_000, "from 2 to 1,000,000"),
    "seed": (0, lambda n: 0 <= n < 2**32, "from 0 to below 2^32"),
}
ITEMS = 500  # of a task of the suite
ALL = "all"


def main(argv: Sequence[str]) -> int:
    parser = cli.parser(__doc__)
    parser.add_argument("--runs", required=True, help="a sweep's workdir, or a run of one")
    parser.add_argument("--run", metavar="ID", help="only this run of the workdir")
    parser.add_argument("--tasks", required=True, help=f"names joined by commas, or {ALL}")
    help_ = f"of each task, {FLAGS['items'][2]} ({ITEMS}; of lm-eval's all)"
    parser.add_argument("--items", type=int, help=help_)
    parser.add_argument("--seed", type=int, default=0, help="seed of the suite's items (0)")
    help_ = "a folder of further tasks of lm-eval, as YAML"
    parser.add_argument("--include_path", metavar="FOLDER", help=help_)
    stop_signal.add_flag(parser)
    args = parser.parse_args(argv)
    numbers = {name: getattr(args, name) for name in FLAGS}
    bad = [
        f"--{n}={x}: expected a whole number {FLAGS[n][2]}"
        for n, x in numbers.items()
        if not FLAGS[n][1](x)
    ]
    if args.include_path and not os.path.isdir(args.include_path):
        bad.append(f"--include_path={args.include_path}: no such folder")
    if bad:
        raise BadInput(*bad)

    from research.inference import chosen_runs
    from research.inference.suite_items import TASKS
    from research.report import score_text
    from research.runs.table import read_row, read_table

    asked = [*TASKS] if args.tasks == ALL else args.tasks.split(",")
    there = find_spec("lm_eval") is not None
    names = chosen_runs.check_names(asked, [*TASKS], there, args.include_path)
    workdir, run = chosen_runs.workdir_of(args.runs, args.run)
    rows = chosen_runs.language_models(read_table(workdir), run)

    from research.inference import scored_runs, suite  # jax from here on
    from research.parallel import jax_settings

    jax_settings.prepare()
    own = suite.Suite(numbers["items"] or ITEMS, numbers["seed"])
    sources: dict[str, scored_runs.Source] = {name: own for name in names if name in TASKS}
    if others := [name for name in names if name not in TASKS]:
        from research.inference.harness import Harness  # which needs lm-eval

        harness = Harness(others, args.include_path, numbers["items"], [*sources])
        sources |= dict.fromkeys(harness.tasks, harness)
    with stop_signal.StopSignal(end=args.end) as stop:
        missing = scored_runs.score_runs(workdir, rows, sources, stop, show)
    scored = [read_row(workdir / "runs" / row["run"]) for row in rows]
    print(score_text.score_table(scored, [*sources]))
    for entry in missing:
        print(f"missing: run {entry.run}: {entry.task}: {entry.reason}")
    return UNFINISHED if missing else 0


def show(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    cli.run(main)
