"""Numbers as people write them."""

import math


def quantity(value: float) -> str:
    """A count as people write it: 14k, 1.2M, 3.5e14."""
    if value >= 1e15:
        return f"{value:.3g}".replace("e+", "e")
    for power, letter in ((12, "T"), (9, "B"), (6, "M"), (3, "k")):
        if value >= 10**power * 0.9995:
            return f"{value / 10**power:.3g}{letter}"
    return f"{value:.3g}" if math.isfinite(value) else str(value)
