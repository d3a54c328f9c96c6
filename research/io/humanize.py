"""Numbers for people: counts, bytes, durations."""

import math


def quantity(value: float) -> str:
    """A count in three digits: 14k, 1.2M, 350T, 2e15."""
    if value >= 1e15:
        return f"{value:.3g}".replace("e+", "e")
    for power, letter in ((12, "T"), (9, "B"), (6, "M"), (3, "k")):
        if value >= 10**power * 0.9995:
            return f"{value / 10**power:.3g}{letter}"
    return f"{value:.3g}" if math.isfinite(value) else str(value)


def flops_text(value: float) -> str:
    """FLOPs as people write them: 1e13, 2.4e21; K, M and B would read as parameters or tokens."""
    if not 1e3 <= value < math.inf:
        return f"{value:.3g}"
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def significant(value: float, digits: int = 4) -> str:
    """A measured number in so many digits, of which zeros at its end are some: 1.260."""
    return f"{value:#.{digits}g}".removesuffix(".") if value else "0"


def amount_text(value: float, column: str) -> str:
    """The value of a column of counts."""
    return flops_text(value) if "flops" in column else quantity(value)


def format_bytes(count: float) -> str:
    """Bytes in three digits, with a unit of powers of 1,000: 1.02 kB, 80 GB."""
    power = min(4, int(math.log10(max(1, count))) // 3)
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def format_duration(seconds: float) -> str:
    """Seconds in the largest unit of which there are two: 119 s, 2 min, 2.0 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
