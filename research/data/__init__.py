"""Data sets: what is trained on and what is held out, on the host, in numpy."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from research.data import text


class Split(Protocol):
    """A sequence of examples of one shape, addressed by number."""

    def __len__(self) -> int: ...

    def rows(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """The examples numbered `index` [B], as arrays whose first axis is B."""
        ...


@dataclass(frozen=True)
class Dataset:
    """`facts` are what a model must know of its data (see check.FACTS); `digest` names the content,
    not the place; `tokens_per_example` is how much one example adds to the horizon; `card` is what
    a report says about the data, computed once per workdir since it may take seconds."""

    train: Split
    heldout: Split
    facts: Mapping[str, object]
    digest: str
    tokens_per_example: int
    unique_tokens: int
    bytes_per_token: float
    card: Callable[[], dict[str, object]]


DATASETS: dict[str, Callable[..., dict]] = {"text": text.load}


def load(name: str, **kwargs: object) -> Dataset:
    """The data set `name`. Raises BadInput when a file is missing, too short or not readable."""
    return Dataset(**DATASETS[name](**kwargs))
