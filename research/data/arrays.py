"""Examples that are rows of arrays in memory."""

from dataclasses import dataclass

import numpy as np

LARGEST = 1e18  # of a number, up or down: its square must be a float32


@dataclass(frozen=True)
class Arrays:
    """Inputs [n, ...] and targets [n, ...] by number."""

    inputs: np.ndarray
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.inputs)

    def rows(self, index: np.ndarray, draw: np.ndarray | None = None) -> dict[str, np.ndarray]:
        return {"inputs": self.inputs[index], "targets": self.targets[index]}
