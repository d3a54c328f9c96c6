"""The flags of experiments.transfer, checked before jax is imported."""

import argparse
import math
from typing import Any, NamedTuple

from research.errors import BadInput, ErrorCollector

STAGES = ("coordinates", "rate", "regret")


class Asked(NamedTuple):
    """The stages, and what differs from the defaults of `transfer.Check` and
    `transfer_rates.Rates`."""

    stages: tuple[str, ...]
    check: dict[str, Any]
    rates: dict[str, Any]


def add_flags(parser: argparse.ArgumentParser) -> None:
    flag = parser.add_argument
    flag("--workdir", required=True, help="where transfer.json is written")
    flag("--stages", default=",".join(STAGES), help=", ".join(STAGES))
    flag("--widths", help="widths of the check (default: 1, 2, 4 and 8 times the base)")
    flag("--depths", help="depths of the check (default: 2,4,8,16,32)")
    flag("--seeds", type=int, default=3, help="seeds of the initialization, at least 2 (3)")
    flag("--lr", type=float, help="learning rate of the check (default: the config's)")
    help_ = "initial head (and, over depths, ends of branches) in the check: 0 or random"
    flag("--start", choices=("zero", "drawn"), default="zero", help=help_)
    help_ = "widths of the runs (default: 1/2, 1, 2 and 4 times the base width)"
    flag("--rate_widths", help=help_)
    help_ = "learning rates, as multiples of the config's (default: 1/8 to 8 by factors of 2)"
    flag("--factors", help=help_)
    flag("--fresh_seeds", type=int, default=2, help="seeds of the regret, at least 2 (2)")


def parse_flags(args: argparse.Namespace) -> Asked:
    """Raises BadInput listing every problem."""
    collect = ErrorCollector()
    stages = tuple(args.stages.split(","))
    if unknown := [name for name in stages if name not in STAGES]:
        expected = f"expected {', '.join(STAGES)}"
        collect.problems.append(f"--stages={args.stages}: {unknown[0]!r}; {expected}")
    for name in ("seeds", "fresh_seeds"):
        if (given := getattr(args, name)) < 2:
            what = "expected at least 2, of which an interval is made"
            collect.problems.append(f"--{name}={given}: {what}")
    if args.lr is not None and not 0 < args.lr < math.inf:
        collect.problems.append(f"--lr={args.lr}: expected a number above 0")
    shapes = {
        name: collect(parse_counts, name, getattr(args, name)) for name in ("widths", "depths")
    }
    varied = {
        "widths": collect(parse_counts, "rate_widths", args.rate_widths),
        "factors": collect(parse_factors, args.factors),
    }
    collect.raise_errors()
    given = [{name: value for name, value in part.items() if value} for part in (shapes, varied)]
    how = {"seeds": args.seeds, "lr": args.lr, "zeros": args.start == "zero"}
    return Asked(stages, given[0] | how, given[1] | {"seeds": args.fresh_seeds})


def parse_counts(name: str, text: str | None) -> tuple[int, ...]:
    """Whole numbers joined by commas, each once, ascending, at least two. Raises BadInput."""
    if text is None:
        return ()
    parts = text.split(",")
    counts = tuple(sorted(int(part) for part in parts if part.isdigit() and int(part) > 0))
    if len(counts) != len(parts) or len(set(counts)) != len(counts) or len(counts) < 2:
        raise BadInput(f"--{name}={text}: expected at least two whole numbers joined by commas")
    return counts


def parse_factors(text: str | None) -> tuple[float, ...]:
    """Numbers above 0 joined by commas, each once, ascending, at least three. Raises BadInput."""
    if text is None:
        return ()
    try:
        factors = tuple(sorted(float(part) for part in text.split(",")))
    except ValueError:
        factors = ()
    wrong = len(set(factors)) != len(factors) or not all(0 < x < math.inf for x in factors)
    if wrong or len(factors) < 3:
        raise BadInput(f"--factors={text}: expected at least three numbers above 0: 0.5,1,2")
    return factors
