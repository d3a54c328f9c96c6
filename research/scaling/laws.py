"""Scaling laws. A law is names, transforms and a prediction; to add one, write it and its line.

A prediction takes the parameters and the columns of a table by name, in numpy:

    floor = Law(
        name="floor",
        formula="L(N) = E + A / N^alpha",
        columns=("params",),
        parameters=("E", "A", "alpha"),
        positive=("E", "A"),
        starts={"alpha": (0.1, 0.3, 1.0)},
        predict=lambda p, x: p["E"] + p["A"] * x["params"] ** -p["alpha"],
    )

Its derivative is taken by a complex step (Squire and Trapp 1998), exact to rounding, so `predict`
must be made of analytic functions (no abs, no maximum). A law that is a sum of exponentials of what
is linear in its parameters may give its `terms` instead: log L = logsumexp(e, a - alpha log N) has
a softmax as its gradient (Hoffmann et al. 2022, appendix D), and that is much faster.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from research.errors import BadInput

Columns = Mapping[str, np.ndarray]
Params = Mapping[str, Any]
Starts = Sequence[float] | Callable[[Columns, np.ndarray], Sequence[float] | np.ndarray]
EXPONENTS = (0.005, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5)
GROUP = "group_number"  # the column of a law of several groups; 0 is the reference
STEP = 1e-30  # of the complex step: there is no difference to cancel
LETTERS = {"params": "N", "tokens": "D", "train": "D", "unique": "D", "flops": "C"}


@dataclass(frozen=True)
class Law:
    """`parameters` as they are reported; the `positive` ones are fitted as their logarithm.

    `columns` are what the prediction of `response` reads. `starts` gives values from which fits
    begin (or a function of the columns and the response that does) for the parameters in which the
    prediction is not linear; the others, which must be positive, are found for each combination by
    non-negative least squares. `bounds` keep a reported parameter where it has a meaning.
    A `nested` law is fitted first, and its parameters are where those of the same name begin.
    """

    name: str
    formula: str
    columns: tuple[str, ...]
    parameters: tuple[str, ...]
    positive: tuple[str, ...]
    starts: Mapping[str, Starts]
    predict: Callable[[Params, Columns], Any] | None = None
    terms: Callable[[Columns], np.ndarray] | None = None
    response: str = "loss"
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    nested: "Law | None" = None

    def prepare(self, columns: Columns) -> np.ndarray:
        """What `evaluate` reads of n rows: terms [T, P, n], or the columns [C, n]."""
        if self.terms:
            return self.terms(columns)
        return np.stack([np.asarray(columns[name], float) for name in self.columns])

    def shared(self, x: np.ndarray) -> bool:
        """Whether all fits have the same rows, rather than each its own ([K, n, ...])."""
        return x.ndim == (3 if self.terms else 2)

    def evaluate(self, theta_KxP: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, Any]:
        """Log prediction [K, n], its derivative [K, P, n], and for laws given by terms the share of
        each term [T, K, n] (from which the second derivative follows)."""
        if self.terms:
            return self._sum(theta_KxP, x)
        return *self._complex_step(theta_KxP, x), None

    def _sum(self, theta_KxP: np.ndarray, x: np.ndarray) -> tuple:
        T, P, n = x.shape[-3:]
        if self.shared(x):
            share_TxKxn = theta_KxP @ x
        else:
            share_TxKxn = np.einsum("ktpn,kp->tkn", x, theta_KxP)
        top_Kxn = share_TxKxn.max(0)
        share_TxKxn -= top_Kxn
        np.exp(share_TxKxn, out=share_TxKxn)
        total_Kxn = share_TxKxn.sum(0)
        share_TxKxn /= total_Kxn
        derivative_KxPxn = np.zeros((len(theta_KxP), P, n))
        for t, p in np.argwhere(x.reshape(-1, T, P, n).any((0, 3))):
            derivative_KxPxn[:, p] += share_TxKxn[t] * x[..., t, p, :]
        return top_Kxn + np.log(total_Kxn), derivative_KxPxn, share_TxKxn

    def _complex_step(self, theta_KxP: np.ndarray, x: np.ndarray) -> tuple:
        columns = {name: x[..., i, :] for i, name in enumerate(self.columns)}
        (K, P), n = theta_KxP.shape, x.shape[-1]
        value, derivative = np.empty((K, n)), np.empty((K, P, n))
        with np.errstate(all="ignore"):  # far from the data a law may have no finite value
            for i in range(P):
                moved = theta_KxP + STEP * 1j * (np.arange(P) == i)
                predicted = np.broadcast_to(self._predict(moved, columns), (K, n))
                value = np.real(predicted)
                derivative[:, i] = np.imag(predicted) / STEP / value
            return np.log(value), derivative

    def _predict(self, theta_KxP: np.ndarray, columns: Columns) -> Any:
        assert self.predict
        values = np.where(self._logged, np.exp(np.where(self._logged, theta_KxP, 0)), theta_KxP)
        named = {name: values[:, i, None] for i, name in enumerate(self.parameters)}
        return self.predict(named, columns)

    @property
    def _logged(self) -> np.ndarray:
        return np.array([name in self.positive for name in self.parameters])

    def report(self, theta: np.ndarray) -> np.ndarray:
        """Fitted → reported parameters, [..., P] → [..., P]."""
        logged = self._logged
        return np.where(logged, np.exp(np.where(logged, theta, 0.0)), theta)

    def fitted(self, reported: np.ndarray) -> np.ndarray:
        """Reported → fitted parameters, [..., P] → [..., P]."""
        logged = self._logged
        return np.where(logged, np.log(np.where(logged, reported, 1.0)), reported)


def _terms(*terms: Mapping[str, np.ndarray | float], of: Sequence[str]) -> np.ndarray:
    """[T, P, n] from terms that map a parameter to what multiplies it; `of` orders parameters."""
    zero = np.zeros(max(np.size(v) for term in terms for v in term.values()))
    return np.array([[zero + term.get(name, 0.0) for name in of] for term in terms])


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
        terms=lambda x: _terms({"E": 1.0}, {"A": 1.0, "alpha": -np.log(x[column])}, of=names),
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
        terms=lambda x: _terms(
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
        return _terms(
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
        top = np.maximum(np.real(n), np.real(d))
        return p["E"] + np.exp(p["k"] * (top + np.log(np.exp(n - top) + np.exp(d - top))))

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
        z = (log_n - log_b) / BREAK_WIDTH
        top = np.maximum(np.real(z), 0.0)
        return -BREAK_WIDTH * (top + np.log(np.exp(-top) + np.exp(z - top)))

    def predict(p: Params, x: Columns) -> Any:
        log_n, log_b = np.log(x["params"]), np.log(at or p["N_b"])
        size = np.exp(-p["alpha"] * log_n + p["shift"] * bend(log_n, log_b))
        return p["E"] + p["A"] * size + p["B"] * x["tokens"] ** -p["beta"]

    def terms(x: Columns) -> np.ndarray:
        assert at
        log_n = np.log(x["params"])
        size = {"A": 1.0, "alpha": -log_n, "shift": bend(log_n, np.log(at))}
        return _terms({"E": 1.0}, size, {"B": 1.0, "beta": -np.log(x["tokens"])}, of=names)

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
        return _terms({"E": 1.0}, {"A": 1.0, "eta": m - c}, {"B": 1.0, "eta": -m - c}, of=names)

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
        top = np.maximum(np.real(a), np.real(b))
        return np.exp(p["beta"] * (top + np.log(np.exp(a - top) + np.exp(b - top))))

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
        z = (log_x - np.log(p["x_b"])) / p["f"]
        top = np.maximum(np.real(z), 0.0)
        bend = top + np.log(np.exp(-top) + np.exp(z - top))
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
            "x_b": lambda x, y: np.geomspace(x[column].min(), x[column].max(), 5)[1:-1],
            "f": (0.1, 0.5),
        },
        predict=predict,
        bounds={"f": (0.02, 5.0)},
    )


def saturating() -> Law:
    """accuracy(L) = floor + rise / (1 + exp(k (L - L0))): from loss to accuracy, flat at chance
    for a high loss and at its ceiling for a low one (the second step of Bhagia et al. 2024)."""

    def predict(p: Params, x: Columns) -> Any:
        z = p["k"] * (x["loss"] - p["L0"])
        top = np.maximum(np.real(z), 0.0)  # exp of what is never positive
        return p["floor"] + p["rise"] * np.exp(-top) / (np.exp(-top) + np.exp(z - top))

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
        top = np.maximum(np.real(z), 0.0)
        return p["floor"] + p["rise"] * np.exp(-top) / (np.exp(-top) + np.exp(z - top))

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
