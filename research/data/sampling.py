"""Which examples are held out, and the order of the others: pure functions of content, seed and
position, so they need no saved state and no stored permutation.

The order of an epoch is a keyed permutation of the numbers 0 … n − 1 that is computed for the
positions asked for: a Feistel network over pairs (left, right), number = left + a · right, for the
least a · b ≥ n, with results from n on sent through it again ("generalized Feistel" with cycle
walking, Black & Rogaway 2002, "Ciphers with Arbitrary Finite Domains"). It is not meant to keep
secrets.
"""

import math

import numpy as np

ROUNDS = 10
SMALL, SMALL_ROUNDS = 64, 24  # a small domain needs more rounds until all orders are as likely
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MULTIPLIERS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def shuffled(seed: int, position_B: np.ndarray, n: int) -> np.ndarray:
    """The example numbers [B], int64, at these positions of the stream of training examples, out
    of `n` examples.

    Every epoch (n positions) visits each example once, in an order of its own; a batch may end one
    epoch and begin the next, so no example is dropped. Resuming, and splitting a batch over any
    number of devices or processes, need nothing but the positions. Memory is O(B), whatever n.
    """
    epoch_B, within_B = np.divmod(position_B.astype(np.uint64), np.uint64(n))
    return _permuted(_round_keys(seed, epoch_B, n), within_B, n).astype(np.int64)


def _round_keys(seed: int, epoch_B: np.ndarray, n: int) -> np.ndarray:
    """Keys [R, B] of the rounds: the splitmix64 stream whose state is drawn from seed and epoch."""
    state_B = splitmix64(splitmix64(np.array([seed], np.uint64)) ^ epoch_B)
    rounds = SMALL_ROUNDS if n < SMALL else ROUNDS
    return splitmix64(state_B + (np.arange(rounds, dtype=np.uint64) * GOLDEN)[:, None])


def _permuted(keys_RxB: np.ndarray, number_B: np.ndarray, n: int) -> np.ndarray:
    """The numbers below n to which each permutation sends `number_B`."""
    a = math.isqrt(n - 1) + 1
    sides = np.uint64(a), np.uint64(-(-n // a))
    out_B = _feistel(keys_RxB, number_B, *sides)
    outside = np.flatnonzero(out_B >= n)  # at most one in √n, but for small n
    while outside.size:
        out_B[outside] = _feistel(keys_RxB[:, outside], out_B[outside], *sides)
        outside = outside[out_B[outside] >= n]
    return out_B


def _feistel(keys_RxB: np.ndarray, number_B: np.ndarray, a: np.uint64, b: np.uint64) -> np.ndarray:
    """A permutation of 0 … a · b − 1, elementwise; the number of rounds is even."""
    right_B, left_B = np.divmod(number_B, a)
    modulus, other = a, b
    for key_B in keys_RxB:
        hash_B = (right_B ^ key_B) * MULTIPLIERS[0]
        hash_B = (hash_B ^ (hash_B >> np.uint64(32))) * MULTIPLIERS[1]
        left_B, right_B = right_B, (left_B + (hash_B >> np.uint64(8))) % modulus
        modulus, other = other, modulus
    return left_B + a * right_B


def is_heldout(name: bytes, share: float) -> bool:
    """Whether what has this SHA-256 is among the `share` that is held out."""
    return int.from_bytes(name[:8], "big") < share * 2**64


def random_bits(seed: int, position_B: np.ndarray) -> np.ndarray:
    """One random uint64 for each position of the stream of training examples, [B]: what
    augmentation draws its numbers from."""
    with np.errstate(over="ignore"):
        offset = np.uint64(seed) * np.uint64(0xD1342543DE82EF95)
    return splitmix64(position_B.astype(np.uint64) + offset)


def splitmix64(state: np.ndarray) -> np.ndarray:
    """The output function of splitmix64 (Steele et al. 2014) on an array: neighboring numbers
    become independent-looking ones."""
    z = state + GOLDEN
    z = (z ^ (z >> np.uint64(30))) * MULTIPLIERS[0]
    z = (z ^ (z >> np.uint64(27))) * MULTIPLIERS[1]
    return z ^ (z >> np.uint64(31))
