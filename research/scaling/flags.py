"""The flags of a fit: names and texts here, their meaning at Options. Imports no numpy."""

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from research.errors import BadInput
from research.tables.columns import split_pairs

FLAGS = {
    "against": {"help": "column that a one-column law depends on (params)"},
    "objective": {
        "help": "huber_log, mse_log or mse (default: mse_log for few rows without outliers)"
    },
    "huber_delta": {"type": float, "help": "of --objective=huber_log (0.001)"},
    "where": {"help": 'fit these rows: params<=1e6, "val loss"<4, optimizer in (adamw, muon)'},
    "best_of": {"help": "cell: fit only the best setting of each size and length"},
    "holdout": {"help": "predict these rows instead of fitting them: largest, or comparisons"},
    "drop_top_loss": {"type": int, "metavar": "K", "help": "leave out the K highest losses"},
    "sample": {"type": int, "metavar": "N", "help": "fit N rows that cover sizes and lengths"},
    "bootstrap": {"type": int, "metavar": "K", "help": "resamples for the intervals (0: none)"},
    "cluster": {"help": "column whose rows are resampled together (run)"},
    "seed": {"type": int, "help": "seed of resamples and draws (0)"},
    "method": {"help": "akima (default) or parabola, for --law=isoflop"},
    "six_nd": {
        "action": "store_true",
        "default": None,
        "help": "count budgets as 6 N D, for --law=isoflop and --law=envelope",
    },
    "inference_tokens": {
        "type": float,
        "metavar": "T",
        "help": "count T tokens of inference in the optima, 2 N FLOPs each",
    },
    "finished": {"help": "further names of the state of a finished run"},
    "last_rows": {
        "action": "store_true",
        "default": None,
        "help": "fit only the last row of each run",
    },
    "far": {
        "action": "store_true",
        "default": None,
        "help": "allow targets far beyond the table",
    },
    "mix": {
        "action": "store_true",
        "default": None,
        "help": "fit one law to rows that are not comparable",
    },
    "odd_units": {
        "action": "store_true",
        "default": None,
        "help": "accept FLOPs inconsistent with params * tokens",
    },
    "noise": {"type": float, "help": "standard deviation of log loss of a run, for --law=isoflop"},
    "compare": {
        "metavar": "COLUMN",
        "help": "compare groups with shared exponents, by any column (or `group`)",
    },
}
SCORE = "score/"  # how columns of scores begin
OF_SCORES = ("saturating", "logistic")  # laws of the column accuracy
OF_CURVES = {"where", "holdout", "seed"}  # options of --law=curve
BESIDE = ("anytime", "compare", "curves", "downstream", "gate", "multiverse", "next_runs")
LISTS = ("predict", "predict_flops")  # numbers joined by commas
POINTS = ("fix", "init", "score")  # parameters: E=1.8,alpha=0.35


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Every flag of a fit but where the table is and where the results go."""
    flag = parser.add_argument
    flag("--law", default="auto", help="auto averages over laws (default); or a law by name")
    flag("--columns", default="", help="rename columns: params=N,loss=val loss,tokens=D (B)*1e9")
    help_ = "column to fit instead of loss: loss/NAME of eval.sets, score/TASK, …"
    flag("--response", metavar="COLUMN", help=help_)
    help_ = "also fit laws from compute to a score, via the loss and directly: score/TASK"
    flag("--downstream", metavar="COLUMN", help=help_)
    help_ = "1,5 is one and a half (--no-decimal_comma: 1,500 is a thousand and a half)"
    flag("--decimal_comma", action=argparse.BooleanOptionalAction, help=help_)
    flag("--all_runs", action="store_true", help="include runs that no longer belong to the sweep")
    flag("--curves", action="store_true", help="use every evaluation as a row, for --law=envelope")
    flag("--next_runs", type=float, metavar="FLOPS", help="propose runs for this budget in total")
    flag("--next_config", help="write them as a sweep, OUT/next.py, based on this config")
    flag(
        "--anytime", action="store_true", help="show how the prediction settles as FLOPs are spent"
    )
    flag(
        "--multiverse", action="store_true", help="refit under every convention and show the spread"
    )
    for name, kind in FLAGS.items():
        flag(f"--{name}", **kind)
    help_ = "with --compare: exit code 0 if B needs less compute than A there, else 1"
    flag("--gate", metavar="B>A@FLOPS", help=help_)
    flag("--predict", default="", help="values of the law's column to predict at: 1e6,1e7")
    flag("--predict_flops", default="", help="budgets to predict at: 1e21,1e22")
    flag("--fix", default="", help="hold parameters fixed: alpha=0.35")
    help_ = "normal priors on parameters: E=1.6±0.1 (or 1.6+-0.1)"
    flag("--prior", default="", help=help_)
    flag("--init", default="", help="a single start, with every parameter: E=1.8,A=400,...")
    flag("--score", default="", help="a published point to compare, with every parameter")


def parse_options(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of Options that are given. Raises BadInput for what cannot be read."""
    given = {name: getattr(args, name) for name in FLAGS if name != "compare"}
    given["finished"] = parse_words(args.finished)
    given |= {name: _parse_numbers(name, getattr(args, name)) for name in LISTS}
    given |= {name: _parse_point(name, getattr(args, name)) for name in POINTS}
    given["prior"] = _parse_prior(args.prior)
    return {name: value for name, value in given.items() if value not in (None, [], {})}


def check_curve_flags(args: argparse.Namespace) -> None:
    """Raises BadInput for flags that --law=curve does not read."""
    given = {*parse_options(args)} - OF_CURVES
    given |= {name for name in BESIDE if getattr(args, name)}
    if given:
        raise BadInput(*(f"--{name}: --law=curve does not use it" for name in sorted(given)))


def parse_words(text: str | None) -> list[str]:
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def parse_columns(args: argparse.Namespace) -> dict[str, str]:
    columns, response = _parse_pairs("columns", args.columns), getattr(args, "response", None)
    ours = "accuracy" if getattr(args, "law", None) in OF_SCORES else "loss"
    if response and ours in columns:
        raise BadInput(f"--response={response}: --columns names {ours}, too; give one of them")
    return columns | ({ours: response} if response else {})


def with_law(args: argparse.Namespace) -> argparse.Namespace:
    """The flags with the law to fit: of scores, which rise, `auto` is logistic. Raises BadInput for
    laws of the loss, which falls, where a score is asked for."""
    if args.all_runs and not Path(args.runs).is_dir():
        raise BadInput(f"--all_runs: {args.runs} is not the workdir of a sweep")
    response = args.response or ""
    if response.startswith(SCORE) and args.law not in OF_SCORES:
        if args.law != "auto":
            raise BadInput(
                f"--response={response}: {args.law} is of a loss, which falls; give "
                "--law=logistic (against a column) or --law=saturating (against the loss)"
            )
        args.law = "logistic"
    return args


def parse_truth(args: argparse.Namespace) -> dict[str, float]:
    return _parse_point("truth", args.truth)


def _parse_pairs(flag: str, text: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in split_pairs(text)]
    if bad := [a for a, equals, b in pairs if not (a.strip() and equals and b.strip())]:
        raise BadInput(f"--{flag}={text}: expected NAME=VALUE, found {bad[0]!r}")
    names = [a.strip() for a, _, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise BadInput(f"--{flag}={text}: {twice[0]} is given twice")
    return {a.strip(): b.strip() for a, _, b in pairs}


def _parse_point(flag: str, text: str) -> dict[str, float]:
    out = {}
    for name, value in _parse_pairs(flag, text).items():
        try:
            out[name] = float(value)
        except ValueError as error:
            raise BadInput(f"--{flag}={name}={value}: expected a number") from error
        if not math.isfinite(out[name]):
            raise BadInput(f"--{flag}={name}={value}: expected a finite number")
    return out


def _parse_prior(text: str) -> dict[str, tuple[float, float]]:
    out = {}
    for name, value in _parse_pairs("prior", text).items():
        mean, _, sd = value.replace("+-", "±").replace("+/-", "±").partition("±")
        try:
            out[name] = (float(mean), float(sd))
        except ValueError as error:
            raise BadInput(f"--prior={name}={value}: expected MEAN±SD, or MEAN+-SD") from error
    return out


def _parse_numbers(flag: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",") if part]
    except ValueError as error:
        raise BadInput(f"--{flag}={text}: expected numbers joined by commas") from error


def parse_next_config(args: argparse.Namespace) -> str | None:
    """The whole path of --next_config. Raises BadInput where it is no config."""
    if (value := args.next_runs) is not None and not 0 < value < math.inf:
        raise BadInput(f"--next_runs={value}: expected a number of FLOPs above 0")
    if args.next_config is None:
        return None
    path = Path(args.next_config)
    if args.next_runs is None:
        raise BadInput("--next_config: for the runs that --next_runs=FLOPS proposes; give both")
    if path.suffix not in (".py", ".json"):
        raise BadInput(f"--next_config={path}: expected a config, a .py or .json file")
    if not path.is_file():
        raise BadInput(f"--next_config={path}: no such file here ({Path.cwd()})")
    return str(path.resolve())


def wanted(args: argparse.Namespace) -> dict[str, Any]:
    """What the flags ask beside a fit: fields of analysis.Wanted."""
    return {
        "compare_by": args.compare,
        "multiverse_too": args.multiverse,
        "next_budget": args.next_runs,
        "anytime": args.anytime,
        "gate": args.gate,
        "scores": args.downstream,
    }


def render_sweep_config(base: str, document: Mapping[str, Any]) -> str:
    """A config whose sweep is the proposed runs, of the config at the path `base`."""
    points = []
    for run in document["next_runs"]["runs"]:
        point = {"size": float(f"{run['params']:.4g}")} if "params" in run else {}
        if "tokens" in run:
            point |= {"horizon.unit": "tokens", "horizon.amount": float(f"{run['tokens']:.4g}")}
        elif "params" not in run and "flops" in run:
            point |= {"horizon.unit": "flops", "horizon.amount": float(f"{run['flops']:.4g}")}
        points.append(point)
    lines = "".join(f"    {point!r},\n" for point in points)
    return (
        '"""Runs that narrow the prediction most; proposed by experiments.fit."""\n\n'
        "from research.config.loading import load_config\n\n"
        f"BASE = {base!r}\nPOINTS = [\n{lines}]\n\n\n"
        "def get_config():\n    return load_config(BASE)[0]\n\n\n"
        "def sweep(config):\n    del config\n"
        "    # Seeds of their own, since equal runs may have been made.\n"
        "    seeds = [1000 + k for k in range(len(POINTS))]\n"
        '    return [{**p, "seed": k, "data.seed": k} for p, k in zip(POINTS, seeds)]\n'
    )
