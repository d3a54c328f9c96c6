"""Fit a scaling law to a table of runs; writes fit.json and the plot.

  python -m experiments.fit --runs=DIR --law=power --out=OUT --holdout=largest
  python -m experiments.fit --runs=runs.csv --columns=params=N,loss=val_loss --out=OUT

The loss is fitted in float64 by the sum over rows of the objective of residuals in log loss.
"""

from collections.abc import Sequence

from research import cli, files
from research.errors import BadInput


def main(argv: Sequence[str]) -> int:
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add("--runs", required=True, help="the workdir of a sweep, a .csv or a .parquet file")
    add("--law", default="power", help="power: L = E + A / x^alpha")
    add("--out", required=True, help="where fit.json and the plot are written")
    add("--against", default="params", help="the column x of the power law")
    add("--objective", help="huber_log, mse_log or mse; mse_log by default below 30 rows")
    add("--huber_delta", type=float, default=1e-3)
    add("--columns", default="", help="rename columns: params=N,loss=val_loss")
    add("--where", help="fit these rows: 'params<=1e6, tokens>1e5'")
    add("--holdout", help="predict these rows and do not fit them: largest, or comparisons")
    add("--predict", default="", help="values of the column to predict at: 1e6,1e7")
    add("--drop_top_loss", type=int, default=0, metavar="K", help="leave out the K highest losses")
    add("--bootstrap", type=int, default=1000, metavar="K", help="resamples; 0: none")
    add("--cluster", default="run", help="the column of what is resampled as a whole")
    add("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    columns = _pairs(args.columns)
    predict = _numbers(args.predict)

    from research import plots, scaling, summary
    from research.scaling import table

    rows = table.read(args.runs, columns)
    names = ("against", "objective", "huber_delta", "where", "holdout", "drop_top_loss")
    options = {name: getattr(args, name) for name in (*names, "bootstrap", "cluster", "seed")}
    document = scaling.fit(args.law, rows, predict=predict, **options)
    out = files.make_directory(args.out)
    files.write_json(out / "fit.json", document)
    kept, _ = table.usable(rows, [args.against, "loss"])
    figure = plots.loss_against(kept, document, scaling.predictor(rows, document), document["unit"])
    written = plots.save(figure, out / "loss")
    print(summary.fit_summary(document))
    print("\n".join(str(path) for path in (out / "fit.json", *written)))
    return 0


def _pairs(text: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in text.split(",") if part]
    if bad := [a for a, equals, b in pairs if not (a and equals and b)]:
        raise BadInput(f"--columns={text}: expected OURS=THEIRS, found {bad[0]!r}")
    return {ours: theirs for ours, _, theirs in pairs}


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",") if part]
    except ValueError as error:
        raise BadInput(f"--predict={text}: expected numbers joined by commas") from error


if __name__ == "__main__":
    cli.run(main)
