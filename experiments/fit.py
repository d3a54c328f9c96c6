"""Fit a scaling law to a table of runs; with --out, writes fit.json and figures.

  python -m experiments.fit --runs=DIR
  python -m experiments.fit --runs=DIR --law=power --out=OUT --holdout=largest
  python -m experiments.fit --runs=runs.csv --law=chinchilla --columns=params=N,tokens=D --out=OUT
  python -m experiments.fit --runs=runs.csv --law=isoflop --method=parabola --out=OUT

Laws: power and broken (against one column), chinchilla, kaplan, data_constrained, overtraining,
saturating and logistic (accuracies), recipe (a sweep over learning rates; writes recipe.json),
curve (training curves); isoflop and envelope find compute-optimal sizes without a law.
Rows that are not comparable (see docs/fitting.md) form groups, each with a law in OUT/GROUP.
The objective is the sum over rows of the Huber loss, or half the square, of log-loss residuals.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from research.config import cli
from research.errors import BadInput, printable


def main(argv: Sequence[str]) -> int:
    # The fits keep every core busy themselves; set before numpy is imported.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

    from research.scaling import flags

    parser = cli.parser(__doc__)
    help_ = "a sweep's workdir, a file (CSV, JSON, parquet, …), wandb:FOLDER or mlflow:STORE"
    parser.add_argument("--runs", required=True, help=help_)
    parser.add_argument("--out", help="where fit.json and the figures are written, if anywhere")
    flags.add_flags(parser)
    args = flags.with_law(parser.parse_args(argv))
    sweep = flags.parse_next_config(args)
    options, columns = flags.parse_options(args), flags.parse_columns(args)

    from research.report import curve_text
    from research.scaling import Options, check_names, groups
    from research.scaling.laws import CURVE
    from research.tables import table

    if args.out is None and (args.law == CURVE or sweep):
        raise BadInput(f"--{'next_config' if sweep else 'law=curve'}: needs --out, to write there")
    rows = table.read_runs(args.runs, columns, args.curves, args.decimal_comma, args.all_runs)
    if args.law == CURVE:
        flags.check_curve_flags(args)
        print(curve_text.write_fit(rows, args.runs, Options(**options), Path(args.out or "")))
        return 0
    check_names(args.law, rows, Options(**options))
    parts = {"": rows} if args.compare else groups.split(rows, Options(**options))
    if len(parts) == 1:
        return 0 if fit_part(args, parts.popitem()[1], options, sweep) else 1
    print(*map(printable, groups.told_of_split(rows, Options(**options), args.law)), sep="\n")
    failures: dict[str, tuple[str, ...]] = {}
    for name, part in parts.items():
        try:
            fit_part(args, part, options, sweep, groups.folder(name, parts), name)
        except BadInput as error:
            failures[name] = tuple(error.problems)
    if len(failures) == len(parts):
        raise groups.none_fitted(failures)
    for line in groups.told_of_failures(failures):
        print(f"\n{printable(line)}")
    return 0


def fit_part(
    args: argparse.Namespace,
    rows: Sequence[dict[str, Any]],
    options: dict[str, Any],
    sweep: str | None,
    folder: str = "",
    group: str = "",
) -> bool:
    """Fit rows that share a law, write and say what was found; whether the --gate is passed."""
    from research import scaling
    from research.report import downstream_text, fit_figures
    from research.scaling import flags

    analysis = scaling.analyze(args.law, rows, options, **flags.wanted(args))
    title = [f"\n{printable(group)}:"] if group else []
    words = [*title, downstream_text.summary(analysis.document)]
    if args.out is not None:
        words += map(str, fit_figures.write_fit(analysis, Path(args.out, folder), sweep))
    print("\n".join(words))
    return analysis.document.get("compare", {}).get("gate", {}).get("passed", True)


if __name__ == "__main__":
    cli.run(main)
