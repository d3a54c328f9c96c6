"""The flags of a calibration, and what they say is to be measured."""

import argparse
import dataclasses
from typing import TYPE_CHECKING

from research.errors import BadInput
from research.io import host
from research.scaling import flags
from research.scaling.options import Options, check_used
from research.tables import table

if TYPE_CHECKING:
    from research.scaling import calibrate

OF_A_TABLE = ("where", "finished", "last_rows", "mix", "odd_units")  # what is read, as in a fit
OF_A_FIT = ("objective", "huber_delta", "cluster", "bootstrap")
SHAPES = ("isoflop",)


def add_flags(parser: argparse.ArgumentParser) -> None:
    flag = parser.add_argument
    flag("--runs", help="the table to imitate: a sweep's workdir, a file (CSV, JSON, …)")
    flag("--shape", choices=SHAPES, help="instead of a table: seven budgets of eight sizes")
    flag("--columns", default="", help="rename columns: params=N,loss=val_loss")
    flag("--decimal_comma", action=argparse.BooleanOptionalAction, help="1,5 is 1.5")
    for name in (*OF_A_TABLE, *OF_A_FIT):
        flag(f"--{name}", **flags.FLAGS[name])
    flag("--tables", type=int, default=400, help="simulated tables of each world")
    flag("--worlds", default="", help="worlds to simulate: seed,scatter (default: all)")
    flag("--methods", default="", help="methods to test: envelope,akima,parabola,chinchilla")
    flag("--truth", default="", help="the true law in place of the fitted one: E=1.8,A=480,...")
    flag("--noise", type=float, help="standard deviation of log loss, in place of the table's")
    flag("--scatter", type=float, help="standard deviation of a size's log efficiency: 0.015")
    flag("--seed", type=int, default=0)
    flag("--processes", type=int, help="default: one per core")


def parse_plan(args: argparse.Namespace) -> "tuple[calibrate.Plan, int]":
    """What is to be measured, and by how many processes. Raises BadInput."""
    from research.scaling import calibrate, worlds  # which no help needs

    _check(args)
    fits = {name: getattr(args, name) for name in OF_A_FIT if getattr(args, name) is not None}
    Options(**fits).check()
    check_used("chinchilla", fits)
    truth = flags.parse_truth(args)
    if truth and set(truth) != set(worlds.CHINCHILLA):
        raise BadInput(f"--truth={args.truth}: expected {', '.join(worlds.CHINCHILLA)}")
    if bad := [name for name, value in truth.items() if value <= 0]:
        raise BadInput(f"--truth={bad[0]}={truth[bad[0]]:g}: expected a number above 0")
    chosen = calibrate.chosen_worlds(flags.parse_words(args.worlds))
    methods = calibrate.chosen_methods(flags.parse_words(args.methods))
    if args.runs:
        columns = flags.parse_columns(args)
        rows = table.read_runs(args.runs, columns, decimal_comma=args.decimal_comma)
        of_table = {name: getattr(args, name) for name in OF_A_TABLE if getattr(args, name)}
        of_table["finished"] = flags.parse_words(args.finished)
        shape = worlds.shape_of(rows, fits | of_table, not truth)
    else:
        shape = worlds.isoflop_shape()
    given = {"truth": truth, "noise": args.noise, "scatter": args.scatter}
    shape = dataclasses.replace(shape, **{k: v for k, v in given.items() if v})
    plan = calibrate.Plan(shape, chosen, methods, args.tables, args.seed, fits)
    return plan, args.processes or host.cores()


def _check(args: argparse.Namespace) -> None:
    """Raises BadInput for flags that no table is needed to refuse."""
    problems = []
    if bool(args.runs) == bool(args.shape):
        problems.append("--runs, --shape: expected one of them")
    for name in (*OF_A_TABLE, "columns", "decimal_comma") if args.shape else ():
        if getattr(args, name) not in (None, ""):
            problems.append(f"--{name}: is for the table of --runs")
    for name, least in (("tables", 1), ("processes", 1), ("seed", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            problems.append(f"--{name}={value}: expected {least} or more")
    for name in ("noise", "scatter"):
        value = getattr(args, name)
        if value is not None and not 0 < value < 1:
            problems.append(f"--{name}={value}: expected a number between 0 and 1")
    if problems:
        raise BadInput(*problems)
