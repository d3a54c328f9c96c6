"""Synthetic regression with a known scaling law: a noisy line, and a power-law linear teacher."""

import functools

import numpy as np

from research.config.types import NonNegative, NonNegativeInt, Positive, PositiveInt
from research.data.arrays import LARGEST, Arrays
from research.errors import BadInput
from research.io import files

MOST_BYTES = 4 << 30  # held in memory


def linear(
    *,
    weights: list[float],
    bias: float,
    noise: NonNegative,
    examples: PositiveInt,
    heldout: PositiveInt,
    generator_seed: NonNegativeInt,
) -> dict[str, object]:
    """y = w · x + bias + noise · ε, x ~ U[0, 1]^F, ε ~ N(0, 1): inputs [n, F], targets [n, 1].

    Raises BadInput above MOST_BYTES, and for targets whose square overflows float32.
    """
    if not weights:
        raise BadInput("data.weights: empty; expected a number for each feature")
    rng = np.random.default_rng(generator_seed)
    n = _check_size(examples + heldout, len(weights) + 1)
    x = rng.uniform(size=(n, len(weights)))
    y = x @ np.array(weights)[:, None] + bias + noise * rng.standard_normal((n, 1))
    words = " + ".join([*(f"{w:g} x{i + 1}" for i, w in enumerate(weights)), f"{bias:g}"])
    source = f"y = {words} + {noise:g} N(0, 1), x uniform on [0, 1], seed {generator_seed}"
    definition = {"weights": weights, "bias": bias, "noise": noise, "seed": generator_seed}
    return _dataset(x, y, examples, definition, {"source": source})


def teacher(
    *,
    features: PositiveInt,
    exponent: Positive,
    examples: PositiveInt,
    heldout: PositiveInt,
    generator_seed: NonNegativeInt,
) -> dict[str, object]:
    """A linear teacher y = M x + noise with x ~ N(0, I), x and y [n, `features`], whose k-th
    direction explains k^-(1 + α) / ζ(1 + α) of the variance, α = `exponent`; what lies beyond
    `features` is noise.

    The best student of rank w leaves L(w) = Σ_{k > w} k^-(1 + α) / ζ(1 + α) ∝ w^-α (Eckart & Young
    1936), so a network with one hidden layer of width w shows the exponent α against its
    parameters. Spectrum as in Bahri et al. (2021).
    """
    return dict(_teacher(features, exponent, examples, heldout, generator_seed))


@functools.lru_cache(maxsize=2)
def _teacher(
    features: int, exponent: float, examples: int, heldout: int, seed: int
) -> dict[str, object]:
    from scipy.special import zeta  # 0.25 s to import, only needed here

    rng = np.random.default_rng(seed)
    n = _check_size(examples + heldout, 2 * features)
    power = 1 + exponent
    share = np.arange(1, features + 1) ** -power / zeta(power)
    unseen = max(0.0, 1 - share.sum())
    x = rng.standard_normal((n, features)).astype(np.float32)
    left, right = (_rotation(rng, features) for _ in range(2))
    matrix = (left * np.sqrt(share * features)) @ right  # mean square 1 - unseen
    noise = rng.standard_normal((n, features)).astype(np.float32)
    y = x @ matrix.astype(np.float32) + np.float32(np.sqrt(unseen)) * noise
    source = (
        f"linear teacher, {features} features, spectrum k^-{power:g}, seed {seed}; the loss should "
        f"fall as width^-{exponent:g}"
    )
    definition = {"features": features, "exponent": exponent, "seed": seed}
    return _dataset(x, y, examples, definition, {"source": source, "expected_exponent": exponent})


def _check_size(examples: int, numbers: int) -> int:
    """`examples`. Raises BadInput if [examples, numbers] and [numbers, numbers] float64 arrays
    exceed MOST_BYTES."""
    size = 8 * numbers * (examples + numbers)
    if size > MOST_BYTES:
        raise BadInput(
            f"data.examples: {examples:,} with those held out, of {numbers:,} numbers each, are "
            f"{size / 1e9:.3g} GB; expected at most {MOST_BYTES / 1e9:.1f}"
        )
    return examples


def _rotation(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((n, n)))[0]


def _dataset(
    x: np.ndarray,
    y: np.ndarray,
    examples: int,
    definition: dict[str, object],
    words: dict[str, object],
) -> dict[str, object]:
    """The digest is taken of the `definition`, not of the arrays: the last bits of a matrix product
    depend on the CPU, and a run's id must not."""
    if not np.abs(y).max() <= LARGEST:
        raise BadInput(
            f"data.weights: with data.bias and data.noise they make targets above {LARGEST:g}, the "
            "square of which overflows float32"
        )
    x, y = x.astype(np.float32), y.astype(np.float32)
    digest = files.digest_of({**definition, "examples": examples, "heldout": len(x) - examples})
    card = {
        **words,
        "digest": digest,
        "train_examples": examples,
        "heldout_examples": len(x) - examples,
    }
    return {
        "train": Arrays(x[:examples], y[:examples]),
        "heldout": Arrays(x[examples:], y[examples:]),
        "targets": "numbers",
        "facts": {"features": x.shape[1], "outputs": y.shape[1]},
        "digest": digest,
        "unique_tokens": examples,
        "card": lambda: card,
    }
