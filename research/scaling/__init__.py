"""From a table of runs to a law, with honest uncertainty. Reads tables; knows no model."""

from research.scaling.fit import Predictor, fit, predictor, unit
from research.scaling.laws import LAWS, Law

__all__ = ["LAWS", "Law", "Predictor", "fit", "predictor", "unit"]
