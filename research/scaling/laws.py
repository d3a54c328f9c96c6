"""Scaling laws of losses and scores. To add one, write it and its line in LAWS:

floor = Law(
    name="floor",
    formula="L(N) = E + A / N^alpha",
    columns=("params",),
    parameters=("E", "A", "alpha"),
    positive=("E", "A"),
    starts={"alpha": (0.1, 0.3, 1.0)},
    predict=lambda p, x: p["E"] + p["A"] * x["params"] ** -p["alpha"],
)
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from research.errors import BadInput
from research.scaling.law import Columns, Law, Params, stack_terms

EXPONENTS = (0.005, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5)
LETTERS = {"params": "N", "tokens": "D", "train": "D", "unique": "D", "flops": "C"}


def _log_sum(a: Any, b: Any) -> Any:
    """log(exp(a) + exp(b)), of complex numbers too. The larger is taken out: nothing overflows."""
    top = np.maximum(np.real(a), np.real(b))
    return top + np.log(np.exp(a - top) + np.exp(b - top))


def _falling(height: Any, z: Any) -> Any:
    """height / (1 + exp(z)), likewise."""
    top = np.maximum(np.real(z), 0.0)
    return height * np.exp(-top) / (np.exp(-top) + np.exp(z - top))


def power(column: str = "params") -> Law:
    """L(x) = E + A / x^alpha against one column of the table."""
    letter = LETTERS.get(column.split("_")[0], column)  # under every convention
    names = ("E", "A", "alpha")
    return Law(
        name="power",
        formula=f"L({letter}) = E + A / {letter}^alpha",
        columns=(column,),
        parameters=names,
        positive=("E", "A"),
        starts={"alpha": EXPONENTS},
        predict=lambda p, x: p["E"] + p["A"] * x[column] ** -p["alpha"],
        terms=lambda x: stack_terms({"E": 1.0}, {"A": 1.0, "alpha": -np.log(x[column])}, of=names),
    )


def chinchilla() -> Law:
    """L(N, D) = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, approach 3)."""
    names = ("E", "A", "B", "alpha", "beta")
    return Law(
        name="chinchilla",
        formula="L(N, D) = E + A / N^alpha + B / D^beta",
        columns=("params", "tokens"),
        parameters=names,
        positive=("E", "A", "B"),
        starts={"alpha": EXPONENTS, "beta": EXPONENTS},
        predict=lambda p, x: (
            p["E"] + p["A"] * x["params"] ** -p["alpha"] + p["B"] * x["tokens"] ** -p["beta"]
        ),
        terms=lambda x: stack_terms(
            {"E": 1.0},
            {"A": 1.0, "alpha": -np.log(x["params"])},
            {"B": 1.0, "beta": -np.log(x["tokens"])},
            of=names,
        ),
    )


def interaction() -> Law:
    """L(N, D) = E + A / N^alpha + B / D^beta + G / (N^alpha D^beta): what size and tokens leave
    undone is more than the sum."""
    names = ("E", "A", "B", "alpha", "beta", "G")

    def terms(x: Columns) -> np.ndarray:
        n, d = -np.log(x["params"]), -np.log(x["tokens"])
        return stack_terms(
            {"E": 1.0}, {"A": 1.0, "alpha": n}, {"B": 1.0, "beta": d},
            {"G": 1.0, "alpha": n, "beta": d}, of=names,
        )  # fmt: skip

    def predict(p: Params, x: Columns) -> Any:
        n, d = x["params"] ** -p["alpha"], x["tokens"] ** -p["beta"]
        return p["E"] + p["A"] * n + p["B"] * d + p["G"] * n * d

    return Law(
        name="interaction",
        formula="L(N, D) = E + A / N^alpha + B / D^beta + G / (N^alpha D^beta)",
        columns=("params", "tokens"),
        parameters=names,
        positive=("E", "A", "B", "G"),
        starts={},
        predict=predict,
        terms=terms,
        nested=chinchilla(),
    )


def skaling() -> Law:
    """L(N, D) = E + (A / N^alpha + B / D^beta)^k (Skaling, arXiv:2608.07222)."""

    def predict(p: Params, x: Columns) -> Any:
        n = np.log(p["A"]) - p["alpha"] * np.log(x["params"])
        d = np.log(p["B"]) - p["beta"] * np.log(x["tokens"])
        return p["E"] + np.exp(p["k"] * _log_sum(n, d))

    return Law(
        name="skaling",
        formula="L(N, D) = E + (A / N^alpha + B / D^beta)^k",
        columns=("params", "tokens"),
        parameters=("E", "A", "B", "alpha", "beta", "k"),
        positive=("E", "A", "B", "k"),
        starts={"k": (0.9, 1.0, 1.1)},
        predict=predict,
        bounds={"k": (0.05, 5.0)},
        nested=chinchilla(),
    )


BREAK_WIDTH = 0.5  # of log N: rows of a scaling law do not tell how sharp a break is


def broken_size(at: float | None = None) -> Law:
    """L(N, D) = E + A N^-alpha (1 + (N / N_b)^(1 / f))^(-shift f) + B / D^beta, f = BREAK_WIDTH:
    Chinchilla's law whose exponent of N changes by `shift` around N_b (the break of Caballero et
    al. 2023), which is fitted, or `at` a given size."""
    names = ("E", "A", "B", "alpha", "beta", "shift")

    def bend(log_n: Any, log_b: Any) -> Any:
        return -BREAK_WIDTH * _log_sum(0.0, (log_n - log_b) / BREAK_WIDTH)

    def predict(p: Params, x: Columns) -> Any:
        log_n, log_b = np.log(x["params"]), np.log(at or p["N_b"])
        size = np.exp(-p["alpha"] * log_n + p["shift"] * bend(log_n, log_b))
        return p["E"] + p["A"] * size + p["B"] * x["tokens"] ** -p["beta"]

    def terms(x: Columns) -> np.ndarray:
        assert at
        log_n = np.log(x["params"])
        size = {"A": 1.0, "alpha": -log_n, "shift": bend(log_n, np.log(at))}
        return stack_terms({"E": 1.0}, size, {"B": 1.0, "beta": -np.log(x["tokens"])}, of=names)

    return Law(
        name="broken_size",
        formula="L(N, D) = E + A N^-alpha (1 + (N / N_b)^(1 / f))^(-shift f) + B / D^beta, "
        f"f = {BREAK_WIDTH}" + (f", N_b = {at:.3g}" if at else ""),
        columns=("params", "tokens"),
        parameters=names if at else (*names, "N_b"),
        positive=("E", "A", "B") if at else ("E", "A", "B", "N_b"),
        starts={"shift": (-0.05, 0.05)}
        | ({} if at else {"N_b": lambda x, y: break_points(x["params"])}),
        predict=predict,
        terms=terms if at else None,
        bounds={"shift": (-0.2, 0.2)},
        nested=chinchilla(),
    )


def break_points(sizes: np.ndarray) -> np.ndarray:
    """Where between the smallest and the largest size an exponent may change."""
    return np.geomspace(np.min(sizes), np.max(sizes), 5)[1:-1]


def overtraining() -> Law:
    """L(C, M) = E + (A M^eta + B M^-eta) C^-eta with M = D / N, tokens per parameter: how a fixed
    ratio away from the optimum costs a constant factor (Gadre et al. 2024, equation 4).

    C is 6 N D, so that the law reads parameters and tokens alone.
    """
    names = ("E", "A", "B", "eta")

    def terms(x: Columns) -> np.ndarray:
        m = np.log(x["tokens"] / x["params"])
        c = np.log(6 * x["params"] * x["tokens"])
        return stack_terms(
            {"E": 1.0}, {"A": 1.0, "eta": m - c}, {"B": 1.0, "eta": -m - c}, of=names
        )

    def predict(p: Params, x: Columns) -> Any:
        m, c = x["tokens"] / x["params"], 6 * x["params"] * x["tokens"]
        return p["E"] + (p["A"] * m ** p["eta"] + p["B"] * m ** -p["eta"]) * c ** -p["eta"]

    return Law(
        name="overtraining",
        formula="L(C, M) = E + (A M^eta + B M^-eta) C^-eta, M = D / N, C = 6 N D",
        columns=("params", "tokens"),
        parameters=names,
        positive=("E", "A", "B"),
        starts={"eta": EXPONENTS},
        predict=predict,
        terms=terms,
    )


def _scale_constants(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The constants with which (constant / x)^exponent is the loss, for usual exponents."""
    return np.exp(np.mean(np.log(x))) * np.mean(y) ** (1 / np.array([0.05, 0.1, 0.2, 0.4]))


def kaplan() -> Law:
    """L(N, D) = ((Nc / N)^(alpha / beta) + Dc / D)^beta (Kaplan et al. 2020, equation 1.5)."""

    def predict(p: Params, x: Columns) -> Any:
        a = p["alpha"] / p["beta"] * np.log(p["Nc"] / x["params"])
        b = np.log(p["Dc"] / x["tokens"])
        return np.exp(p["beta"] * _log_sum(a, b))

    return Law(
        name="kaplan",
        formula="L(N, D) = ((Nc / N)^(alpha / beta) + Dc / D)^beta",
        columns=("params", "tokens"),
        parameters=("Nc", "Dc", "alpha", "beta"),
        positive=("Nc", "Dc", "alpha", "beta"),
        starts={
            "Nc": lambda x, y: _scale_constants(x["params"], y),
            "Dc": lambda x, y: _scale_constants(x["tokens"], y),
            "alpha": (0.05, 0.1, 0.3),
            "beta": (0.05, 0.1, 0.3),
        },
        predict=predict,
    )


def data_constrained() -> Law:
    """Repeated data (Muennighoff et al. 2023, equations 5 and 6): tokens beyond the unique ones,
    and parameters beyond what those can use, count for less the more there are,

    L = E + A / N'^alpha + B / D'^beta, D' = U + U R_D (1 - exp(-(D / U - 1) / R_D)), with U the
    unique tokens seen, and N' alike from U_N = min(N, what is compute-optimal for U) and R_N.
    """

    def saturated(base: Any, amount: Any, scale: Any) -> Any:
        # 1 - exp(-x) would lose every digit where x is small
        return base * (1 - scale * np.expm1(-(amount / base - 1) / scale))

    def predict(p: Params, x: Columns) -> Any:
        unique = np.minimum(x["unique_tokens"], x["tokens"])
        a, b = p["alpha"], p["beta"]
        log_g = np.log(a * p["A"] / (b * p["B"])) / (a + b)
        enough = np.exp(log_g + b / a * (np.log(unique) + log_g))
        # The smaller one; `where` rather than `minimum`, which does not order complex numbers.
        base = np.where(np.real(enough) < x["params"], enough, x["params"])
        n = saturated(base, x["params"], p["R_N"])
        d = saturated(unique, x["tokens"], p["R_D"])
        return p["E"] + p["A"] * np.exp(-a * np.log(n)) + p["B"] * np.exp(-b * np.log(d))

    return Law(
        name="data_constrained",
        formula="L(N, D, U) = E + A / N'^alpha + B / D'^beta",
        columns=("params", "tokens", "unique_tokens"),
        parameters=("E", "A", "B", "alpha", "beta", "R_D", "R_N"),
        positive=("E", "A", "B", "alpha", "beta", "R_D", "R_N"),
        starts={
            "R_D": (1.0, 5.0, 15.0, 100.0),
            "R_N": (1.0, 5.0, 30.0),
        },
        predict=predict,
        bounds={"R_D": (1e-2, 1e5), "R_N": (1e-2, 1e5)},
        nested=chinchilla(),
    )


def broken(column: str = "params") -> Law:
    """L(x) = E + A x^-c0 (1 + (x / x_b)^(1 / f))^(-c1 f): a power law whose exponent goes from c0
    to c0 + c1 around x_b, within a width f (Caballero et al. 2023, one break)."""
    letter = LETTERS.get(column.split("_")[0], column)

    def predict(p: Params, x: Columns) -> Any:
        log_x = np.log(x[column])
        bend = _log_sum(0.0, (log_x - np.log(p["x_b"])) / p["f"])
        return p["E"] + p["A"] * np.exp(-p["c0"] * log_x - p["c1"] * p["f"] * bend)

    return Law(
        name="broken",
        formula=f"L({letter}) = E + A {letter}^-c0 (1 + ({letter} / x_b)^(1 / f))^(-c1 f)",
        columns=(column,),
        parameters=("E", "A", "c0", "c1", "x_b", "f"),
        positive=("E", "A", "x_b", "f"),
        starts={
            "c0": (0.05, 0.2, 0.5, 1.0),
            "c1": (-0.3, 0.3, 1.0),
            "x_b": lambda x, y: break_points(x[column]),
            "f": (0.1, 0.5),
        },
        predict=predict,
        bounds={"f": (0.02, 5.0)},
    )


def saturating() -> Law:
    """accuracy(L) = floor + rise / (1 + exp(k (L - L0))): from loss to accuracy, flat at chance
    for a high loss and at its ceiling for a low one (the second step of Bhagia et al. 2024)."""

    def predict(p: Params, x: Columns) -> Any:
        return p["floor"] + _falling(p["rise"], p["k"] * (x["loss"] - p["L0"]))

    return Law(
        name="saturating",
        formula="accuracy(L) = floor + rise / (1 + exp(k (L - L0)))",
        columns=("loss",),
        parameters=("floor", "rise", "k", "L0"),
        positive=("floor", "rise", "k"),
        starts={
            "k": (0.5, 1.0, 2.0, 5.0, 10.0),
            "L0": lambda x, y: np.linspace(x["loss"].min(), x["loss"].max(), 5),
        },
        predict=predict,
        response="accuracy",
    )


def logistic(column: str = "params") -> Law:
    """accuracy(x) = floor + rise / (1 + (x_half / x)^k): a score that grows from chance to its
    ceiling along the logarithm of one column."""
    letter = LETTERS.get(column.split("_")[0], column)

    def predict(p: Params, x: Columns) -> Any:
        z = p["k"] * (np.log(p["x_half"]) - np.log(x[column]))
        return p["floor"] + _falling(p["rise"], z)

    return Law(
        name="logistic",
        formula=f"accuracy({letter}) = floor + rise / (1 + (x_half / {letter})^k)",
        columns=(column,),
        parameters=("floor", "rise", "k", "x_half"),
        positive=("floor", "rise", "k", "x_half"),
        starts={
            "k": (0.2, 0.5, 1.0, 2.0),
            "x_half": lambda x, y: np.geomspace(x[column].min(), 10 * x[column].max(), 5),
        },
        predict=predict,
        response="accuracy",
    )


# A law that is drawn against one column takes that column.
LAWS: dict[str, Callable[..., Law]] = {
    "power": power,
    "broken": broken,
    "chinchilla": chinchilla,
    "kaplan": kaplan,
    "data_constrained": data_constrained,
    "overtraining": overtraining,
    "interaction": interaction,
    "skaling": skaling,
    "broken_size": broken_size,
    "saturating": saturating,
    "logistic": logistic,
}
AUTO = "auto"  # an average over laws
RECIPE = "recipe"  # of learning rate and batch too; its columns are those that vary in a table
CURVE = "curve"  # of training curves under learning-rate schedules: scaling.loss_curves
AGAINST = ("power", "broken", "logistic")
METHODS_OF_MINIMA = ("akima", "parabola")  # of locating one
METHODS = ("isoflop", "envelope", "optima")  # optimal sizes without a law of the loss


def named_law(name: str, against: str = "params") -> Law:
    if name not in LAWS:
        raise BadInput(
            f"--law={name}: expected one of {', '.join([AUTO, *LAWS, RECIPE, CURVE, *METHODS])}"
        )
    return LAWS[name](against) if name in AGAINST else LAWS[name]()
