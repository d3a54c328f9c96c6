"""Figures of a sweep for a paper or a talk: PDF with embedded fonts, SVG or PNG.

  python -m experiments.plot --runs=DIR --figure=isoflop,frontier --style=paper --out=x.pdf
  python -m experiments.plot --runs=runs.csv --figure=contours --width=84mm --out=contours.svg

One figure is written to OUT, each of several to OUT-FIGURE: x-isoflop.pdf, x-frontier.pdf.
isoflop, frontier, envelope, losses, contours, residuals and loss need only a table; curves, ladder
(isoflop verify), transfer, coordinates and regret (isoflop transfer) need a workdir.
"""

from collections.abc import Sequence
from pathlib import Path

from research.config import cli
from research.errors import BadInput


def main(argv: Sequence[str]) -> int:
    parser = cli.parser(__doc__)
    parser.add_argument("--runs", required=True, help="a workdir, or a table from elsewhere")
    parser.add_argument("--figure", required=True, help="names, joined by commas")
    parser.add_argument("--style", default="paper", help="paper (default), talk or page")
    help_ = "3.3in, 84mm, 8.4cm or 240pt (default: 3.3in for paper, 10in for talk)"
    parser.add_argument("--width", help=help_)
    parser.add_argument("--out", required=True, help="a file: .pdf, .svg or .png")
    parser.add_argument("--law", help="another law for frontier, losses, contours, residuals")
    parser.add_argument("--where", help="only runs that meet all comparisons: params>1e5")
    help_ = "include runs that no longer belong to the sweep"
    parser.add_argument("--all_runs", action="store_true", help=help_)
    args = parser.parse_args(argv)
    names = args.figure.split(",")

    from research.io import files
    from research.report import figures, style

    out = Path(args.out)
    kind = out.suffix.removeprefix(".").lower()
    if kind not in style.KINDS:
        raise BadInput(f"--out={args.out}: expected a file ending in .{', .'.join(style.KINDS)}")
    figures.check_names(names)
    style.check_look(args.style)
    width = figures.parse_width(args.width) if args.width else None
    source = figures.read_source(args.runs, names, args.where, args.law, args.all_runs)
    drawn = figures.draw(names, source, args.style, width)
    files.make_directory(out.parent)
    for name, figure in drawn.items():
        path = out if len(drawn) == 1 else out.with_stem(f"{out.stem}-{name}")
        files.write_atomic(path, style.as_bytes(figure, kind, box=None))
        print(path)
    return 0


if __name__ == "__main__":
    cli.run(main)
