"""Fit and draw a sweep again from its records alone: report.html, fit.json, figures.

python -m experiments.report --runs=DIR
python -m experiments.report --runs=DIR --where='tag==baseline' --out=OUT     (DIR is only read)
"""

import math
from collections.abc import Sequence

from research.config import cli
from research.errors import BadInput


def main(argv: Sequence[str]) -> int:
    parser = cli.parser(__doc__)
    parser.add_argument("--runs", required=True, help="the workdir of a sweep")
    help_ = "column that the loss depends on (default: the first that varies)"
    parser.add_argument("--against", help=help_)
    help_ = "fit one law to runs that are not comparable"
    parser.add_argument("--mix", action="store_true", help=help_)
    help_ = "include runs that no longer belong to the sweep"
    parser.add_argument("--all_runs", action="store_true", help=help_)
    parser.add_argument("--where", help="only runs that meet all comparisons: params>1e5")
    help_ = "also show optima that count T tokens of inference"
    parser.add_argument("--inference_tokens", type=float, metavar="T", help=help_)
    parser.add_argument("--out", help="where the report is written (default: the workdir)")
    args = parser.parse_args(argv)

    from research.report import reuse
    from research.runs.table import write_table

    served = args.inference_tokens
    if served is not None and not 0 < served < math.inf:
        raise BadInput(f"--inference_tokens={served}: expected a number above 0")
    how = {"mix": args.mix, "all_runs": args.all_runs, "where": args.where}
    how |= {"inference_tokens": served} if served else {}
    words = reuse.written_report(args.runs, args.out, against=args.against, every_way=True, **how)
    write_table(args.runs, args.out)
    print(words)
    return 0


if __name__ == "__main__":
    cli.run(main)
