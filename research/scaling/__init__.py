"""From a table of runs to a law, with honest uncertainty. Reads tables; knows no model."""

from research.scaling.analysis import Analysis, analyze, fit_law
from research.scaling.fit import Fit
from research.scaling.fit_document import loss_unit
from research.scaling.laws import LAWS, Law, named_law
from research.scaling.options import Options, split_rows

__all__ = [
    "LAWS",
    "Analysis",
    "Fit",
    "Law",
    "Options",
    "analyze",
    "fit_law",
    "loss_unit",
    "named_law",
    "split_rows",
]
