"""Fit and draw a sweep again from its records: report.html, fit.json, figures. Needs no model.

python -m experiments.report --runs=DIR
"""

from collections.abc import Sequence

from research.config import cli


def main(argv: Sequence[str]) -> int:
    parser = cli.parser(__doc__)
    parser.add_argument("--runs", required=True, help="the workdir of a sweep")
    help_ = "the column that the loss falls with; by default the first that differs"
    parser.add_argument("--against", help=help_)
    help_ = "one law for runs that are not comparable"
    parser.add_argument("--mix", action="store_true", help=help_)
    help_ = "also runs that are no points of the sweep as it was launched last"
    parser.add_argument("--all_runs", action="store_true", help=help_)
    args = parser.parse_args(argv)

    from research.report import build, text
    from research.runs.table import write_table

    result = build.write_report(args.runs, args.against, True, args.mix, args.all_runs)
    write_table(args.runs)
    print(text.text_summary(result))
    return 0


if __name__ == "__main__":
    cli.run(main)
