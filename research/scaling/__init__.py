"""From a table of runs to a law, with honest uncertainty. Reads tables; knows no model.

The names here are loaded when they are first used: a command's --help asks for none of them.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from research.scaling.analysis import Analysis, analyze, check_names, fit_law
    from research.scaling.fit import Fit
    from research.scaling.fit_document import loss_unit
    from research.scaling.law import Law
    from research.scaling.laws import LAWS, named_law
    from research.scaling.options import Options, split_rows

_HOME = {
    **dict.fromkeys(("Analysis", "analyze", "check_names", "fit_law"), "analysis"),
    "Fit": "fit",
    "loss_unit": "fit_document",
    "Law": "law",
    **dict.fromkeys(("LAWS", "named_law"), "laws"),
    **dict.fromkeys(("Options", "split_rows"), "options"),
}

__all__ = [
    "LAWS",
    "Analysis",
    "Fit",
    "Law",
    "Options",
    "analyze",
    "check_names",
    "fit_law",
    "loss_unit",
    "named_law",
    "split_rows",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
