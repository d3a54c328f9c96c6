"""What examples contain that are rows, as hashes (see `contents`)."""

from collections.abc import Sequence

import numpy as np

from research.data.contents import kept, of_tokens


def of_windows(windows_NxT: np.ndarray, pad: int, classes: int) -> np.ndarray:
    """Of documents cut into rows, the last of each padded."""
    columns = np.full((len(windows_NxT), 1), pad, windows_NxT.dtype)
    return of_tokens([np.hstack([windows_NxT, columns]).reshape(-1)], pad, classes)


def of_digests(digests: Sequence[bytes], classes: int) -> np.ndarray:
    """Of examples that have a SHA-256 already."""
    return kept(np.array([int.from_bytes(d[:8], "big") for d in digests], np.uint64), classes)
