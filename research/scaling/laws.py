"""Scaling laws. A law is the logarithm of a sum of exponentials that are linear in its parameters.

L(N) = E + A / N^alpha is log L = logsumexp(e, a - alpha log N) with E = exp(e), A = exp(a): the
logarithms keep the coefficients positive, and the gradient is a softmax (Hoffmann et al. 2022,
appendix D). To add a law of this form, write its terms.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

Columns = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Law:
    """`parameters` as they are reported; those in `logged` are fitted as their logarithm.

    `terms(columns)` gives X [n, T, P]: term t of row i is exp(X[i, t] · theta). `starts` spans the
    exponents (all parameters that are not logged) from which fits begin.
    """

    name: str
    columns: tuple[str, ...]
    parameters: tuple[str, ...]
    logged: tuple[str, ...]
    terms: Callable[[Columns], np.ndarray]
    formula: str
    starts: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5)

    def log_prediction(self, theta_KxP: np.ndarray, x_nxTxP: np.ndarray) -> tuple:
        """log L [K, n] and its derivative [K, n, P], for K parameter vectors at once."""
        rows = "kntp" if x_nxTxP.ndim == 4 else "ntp"  # each fit its own rows, or all the same
        z_KxnxT = np.einsum(f"{rows},kp->knt", x_nxTxP, theta_KxP)
        top = z_KxnxT.max(-1, keepdims=True)
        scaled = np.exp(z_KxnxT - top)
        total = scaled.sum(-1, keepdims=True)
        share_KxnxT = scaled / total
        log_KxN = (top + np.log(total))[..., 0]
        return log_KxN, np.einsum(f"knt,{rows}->knp", share_KxnxT, x_nxTxP)

    def report(self, theta: np.ndarray) -> np.ndarray:
        """Fitted → reported parameters, [..., P] → [..., P]."""
        logged = np.array([name in self.logged for name in self.parameters])
        return np.where(logged, np.exp(np.where(logged, theta, 0.0)), theta)


def power(column: str = "params") -> Law:
    """L(x) = E + A / x^alpha against one column of the table."""

    def terms(columns: Columns) -> np.ndarray:
        log_x = np.log(columns[column])
        one, zero = np.ones_like(log_x), np.zeros_like(log_x)
        constant = np.stack([one, zero, zero], axis=-1)
        falling = np.stack([zero, one, -log_x], axis=-1)
        return np.stack([constant, falling], axis=1)

    kinds = {"params": "N", "tokens": "D", "train": "D", "unique": "D", "flops": "C"}
    letter = kinds.get(column.split("_")[0], column)  # under every convention
    return Law(
        name="power",
        columns=(column,),
        parameters=("E", "A", "alpha"),
        logged=("E", "A"),
        terms=terms,
        formula=f"L({letter}) = E + A / {letter}^alpha",
    )


LAWS: dict[str, Callable[..., Law]] = {"power": power}
