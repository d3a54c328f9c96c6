"""Isoflop from Python and in notebooks: six functions over what the commands do.

    import isoflop

    isoflop.plan("configs/sweeps/lm_isoflop.py")            # what would be trained, and its cost
    runs = isoflop.sweep("configs/sweeps/lm_isoflop.py", "runs/demo")
    runs = isoflop.load("runs/demo")                        # or a table from elsewhere
    law = isoflop.fit(runs, "chinchilla", holdout="largest")
    law.predict(flops=1e13)
    law.plot()
    isoflop.plot(runs, "isoflop", style="paper").savefig("isoflop.pdf")
    model = isoflop.load_model("runs/demo")                 # the run of lowest loss
    print(model.generate("def "))

Bad input raises `BadInput`, which lists every problem. jax is imported by `plan`, `sweep` and
`load_model` alone.
"""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from research import __version__
from research.errors import BadInput

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from isoflop.law import Law
    from isoflop.model import LanguageModel
    from isoflop.table import Table

__all__ = ["BadInput", "__version__", "fit", "load", "load_model", "plan", "plot", "sweep"]

Path = str | os.PathLike[str]


def load(
    runs: Path,
    *,
    columns: Mapping[str, str] | None = None,
    curves: bool = False,
    all_runs: bool = False,
) -> "Table":
    """The runs of a sweep's workdir, or a table from elsewhere, as `isoflop fit --runs` reads them:
    a CSV, JSON or parquet file, wandb:FOLDER, mlflow:STORE.

    `columns` maps our names to theirs ({"tokens": "D (B)*1e9"}); `curves` gives a row for every
    evaluation, and `all_runs` also runs that are no points of the workdir's latest sweep. Raises
    BadInput when there is no such table.
    """
    from isoflop import table

    return table.load(runs, columns, curves, all_runs)


def fit(
    runs: "Path | Table | Sequence[Mapping[str, Any]] | Any",
    law: str = "auto",
    *,
    compare: str | None = None,
    **options: Any,
) -> "Law":
    """A scaling law fitted to `runs`: what `load` gave, rows as mappings, a pandas data frame, or
    whatever `load` reads.

    `law` is a name of `isoflop fit --law`; `auto` averages over the laws that the rows cannot tell
    apart. `compare` names a column of recipes to be compared. `options` are the flags of the
    command: holdout="largest", predict_flops=[1e21], where="params>1e7", objective="huber_log", …
    Raises BadInput for a table that cannot be fitted and for options that do not fit the law.
    """
    from isoflop import law as module

    return module.fit(runs, law, compare, options)


def plan(
    config: Path, *, workdir: Path | None = None, sweep: str = "sweep", **changes: Any
) -> "Table":
    """The runs of a sweep, one row each: size, tokens, FLOPs, steps, memory on a device in bytes,
    status in `workdir`. Nothing is trained or written.

    `sweep` is the name of the config's function, `changes` override keys of the config (dots as in
    **{"optim.lr": 1e-3}). What would bias a law is in the table's `notes`. Raises BadInput.
    """
    from isoflop import experiments

    return experiments.plan(config, workdir, sweep, changes)


def sweep(
    config: Path, workdir: Path, *flags: str, sweep: str = "sweep", **changes: Any
) -> "Table":
    """Train what is missing of a sweep and write its report, as `isoflop sweep` does; the runs.

    `flags` are others of that command ("--workers=2"). Raises BadInput for what the command
    refuses, and RuntimeError if runs are missing at its end, which the next call trains.
    """
    from isoflop import experiments

    return experiments.sweep(config, workdir, flags, sweep, changes)


def plot(
    runs: "Path | Table | Sequence[Mapping[str, Any]] | Any",
    figure: str,
    *,
    style: str = "page",
    width: float | None = None,
    law: str | None = None,
    where: str | None = None,
) -> "Figure":
    """A matplotlib figure of `runs` (as `fit` takes them), to be changed and saved: "isoflop",
    "frontier", "envelope", "loss", "losses", "contours", "residuals"; of a workdir also "curves",
    "ladder", "transfer", "coordinates", "regret".

    `style` is "page", "paper" (one column of 3.3 inches) or "talk", `width` another one in inches;
    the rest is as `isoflop plot` takes it. Raises BadInput, with the reason, for a figure that the
    runs do not allow.
    """
    from isoflop import table
    from research.report import figures

    figures.check_names([str(figure)])
    if isinstance(runs, str | os.PathLike):
        source = figures.read_source(runs, [figure], where, law)
    else:
        workdir = getattr(runs, "workdir", None)
        source = figures.of_rows(table.rows_of(runs), workdir, where, law)
    return figures.draw([figure], source, style, width)[figure]


def load_model(run: Path) -> "LanguageModel":
    """The language model of a run, `WORKDIR/runs/ID`, or that of lowest loss in a workdir. Raises
    BadInput when there is none."""
    from isoflop import model

    return model.load(run)
