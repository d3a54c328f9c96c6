"""Fit a scaling law to a table of runs; writes fit.json and figures.

  python -m experiments.fit --runs=DIR --law=power --out=OUT --holdout=largest
  python -m experiments.fit --runs=runs.csv --law=chinchilla --columns=params=N,tokens=D --out=OUT
  python -m experiments.fit --runs=runs.csv --law=isoflop --method=parabola --out=OUT

Laws: power and broken (against one column), chinchilla, kaplan, data_constrained, overtraining,
saturating (accuracy from loss); isoflop and envelope find compute-optimal sizes without a law.
The objective is the sum over rows of Huber's loss, or half the square, of residuals in log loss.
"""

import os
from collections.abc import Sequence

from research.config import cli
from research.io import files


def main(argv: Sequence[str]) -> int:
    # The fits keep every core busy themselves; set before numpy is imported.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

    from research.scaling import flags

    parser = cli.parser(__doc__)
    help_ = "a sweep's workdir, a file (CSV, JSON, parquet, …), wandb:FOLDER or mlflow:STORE"
    parser.add_argument("--runs", required=True, help=help_)
    parser.add_argument("--out", required=True, help="where fit.json and the figures are written")
    flags.add_flags(parser)
    args = parser.parse_args(argv)
    sweep = flags.parse_next_config(args)
    options, columns = flags.parse_options(args), flags.parse_columns(args)

    from research import scaling
    from research.report import fit_figures, text
    from research.scaling import fit_document, table

    rows = table.read_runs(args.runs, columns, args.curves, args.decimal_comma)
    analysis = scaling.analyze(
        args.law, rows, options, args.compare, args.multiverse, args.next_runs, args.anytime
    )
    figures, words = fit_figures.draw_figures(analysis), text.fit_summary(analysis.document)
    out = files.make_directory(args.out)  # from here on only the disk can fail
    path = fit_document.write_document(out, analysis.document)
    written = fit_figures.save_figures(figures, out)
    if sweep:
        files.write_atomic(
            out / "next.py", flags.render_sweep_config(sweep, analysis.document).encode()
        )
        written.append(out / "next.py")
    print(words)
    print("\n".join(map(str, (path, *written))))
    return 0


if __name__ == "__main__":
    cli.run(main)
