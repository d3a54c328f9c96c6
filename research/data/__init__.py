"""Data sets: what is trained on and what is held out, on the host, in numpy.

`DATASETS` names them; the module of one is imported when it is first loaded.
"""

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from research.data import sampling


class Split(Protocol):
    """A sequence of examples of one shape, addressed by number."""

    def __len__(self) -> int: ...

    def rows(self, index: np.ndarray, draw: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """The examples numbered `index` [B] as {"inputs", "targets"}, whose first axis is B.

        In training, `draw` [B] holds a random uint64 for each, from which augmentation takes all
        its numbers; without it (evaluation) nothing is random.
        """
        ...


@dataclass(frozen=True)
class Dataset:
    """`targets` is their kind: "tokens" (the next of each), "classes" (int, [B]) or "numbers"
    (float, [B, K]); a task measures one kind. `facts` are what a model must know of its data (see
    config.schema.FACTS), `notes` what metrics and reports must. `digest` names the content of all
    that `path`, `paths` and `tokenizer` stand for, not the place. `tokens_per_example` is how much
    one example adds to the horizon (1 where it is no text). `mixture` holds (length, weight) of the
    parts of `train` that are drawn by weight. `count_bytes` (inputs, targets) is how many bytes of
    text the targets are, where that is known. `contents` (part, classes) are the hashes of what
    "train" or "heldout" holds (see data.contents). `load_set` (path, the section `data`) reads
    another file as this one (see evaluation_files). `card` is what a report says about the data,
    computed once per workdir since it may take seconds."""

    train: Split
    heldout: Split
    targets: str
    facts: Mapping[str, Any]
    digest: str
    card: Callable[[], dict[str, object]]
    tokens_per_example: int = 1
    unique_tokens: int = 0
    notes: Mapping[str, Any] = field(default_factory=dict)
    mixture: tuple[tuple[int, float], ...] = ()
    count_bytes: Callable[[np.ndarray, np.ndarray], int] | None = None
    contents: Callable[[str, int], np.ndarray] | None = None
    load_set: Callable[[str, Mapping[str, Any]], Split] | None = None
    tokenizer: str = ""  # its JSON, to be kept with the run

    def batch(
        self, seed: int, step: int, size: int, at: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """The training batch of `step`, or its rows numbered `at`: a pure function of its
        arguments."""
        position_B = step * size + (np.arange(size) if at is None else at).astype(np.int64)
        if self.mixture:
            lengths, weights = zip(*self.mixture, strict=True)
            from research.data.mixture_sampling import shuffled_mixture

            index_B = shuffled_mixture(seed, position_B, lengths, weights)
        else:
            index_B = sampling.shuffled(seed, position_B, len(self.train))
        return self.train.rows(index_B, sampling.random_bits(seed, position_B))


DATASETS = {
    "text": "research.data.text:load",
    "mixture": "research.data.mixture:load",
    "hub": "research.data.hub:load",
    "text_classes": "research.data.text_classification:load",
    "table": "research.data.tabular:load",
    "images": "research.data.images:load",
    "linear": "research.data.synthetic:linear",
    "teacher": "research.data.synthetic:teacher",
}


def load(name: str, **kwargs: object) -> Dataset:
    """The data set `name`. Raises BadInput when a file is missing, too short or not readable."""
    return Dataset(**pkgutil.resolve_name(DATASETS[name])(**kwargs))
