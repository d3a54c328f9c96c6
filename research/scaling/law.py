"""What a scaling law is: names, transforms and a prediction, in numpy, of parameters and columns.

Its derivative is taken by a complex step (Squire and Trapp 1998), exact to rounding, so `predict`
must be made of analytic functions (no abs, no maximum). A law that is a sum of exponentials of what
is linear in its parameters may give its `terms` instead: log L = logsumexp(e, a - alpha log N) has
a softmax as its gradient (Hoffmann et al. 2022, appendix D), and that is much faster.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Columns = Mapping[str, np.ndarray]
Params = Mapping[str, Any]
Starts = Sequence[float] | Callable[[Columns, np.ndarray], Sequence[float] | np.ndarray]
GROUP = "group_number"  # the column of a law of several groups; 0 is the reference
STEP = 1e-30  # of the complex step: there is no difference to cancel


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


def stack_terms(*terms: Mapping[str, np.ndarray | float], of: Sequence[str]) -> np.ndarray:
    """[T, P, n] from terms that map a parameter to what multiplies it; `of` orders parameters."""
    zero = np.zeros(max(np.size(v) for term in terms for v in term.values()))
    return np.array([[zero + term.get(name, 0.0) for name in of] for term in terms])
