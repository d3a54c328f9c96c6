"""Print, filter and sort the table of runs.

  python -m experiments.table --runs=DIR --where='params>1e5, status==done' --sort=-loss
  python -m experiments.table --runs=DIR --columns=params,flops_6nd,loss --format=csv

DIR is the workdir of a sweep, whose runs may still be training; or a file, wandb:FOLDER or
mlflow:STORE, as docs/fitting.md describes.
"""

import sys
from collections.abc import Sequence

from research.config import cli
from research.errors import printable
from research.report import run_table


def main(argv: Sequence[str]) -> int:
    parser = cli.parser(__doc__)
    parser.add_argument(
        "--runs", required=True, help="a sweep's workdir, or a table from elsewhere"
    )
    parser.add_argument("--where", help="only rows that meet all comparisons: params>1e5")
    parser.add_argument("--sort", help="a column; -COLUMN for descending order")
    help_ = "columns to show, comma-separated; `all` shows every column"
    parser.add_argument("--columns", help=help_)
    parser.add_argument("--format", choices=sorted(run_table.FORMATS), default="text")
    args = parser.parse_args(argv)

    from research.tables import table, where

    rows = table.read_runs(args.runs, all_runs=True)
    for note in table.notes_of(rows):
        print(f"warning: {printable(note)}", file=sys.stderr)
    if args.where:
        rows = [row for row, keep in zip(rows, where.match_where(rows, args.where)) if keep]
    if args.sort:
        rows = run_table.sort_rows(rows, args.sort)
    print(run_table.FORMATS[args.format](rows, run_table.select_columns(rows, args.columns)))
    return 0


if __name__ == "__main__":
    cli.run(main)
