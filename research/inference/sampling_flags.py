"""What is asked of a language model, by flags or in a notebook, checked before jax is imported."""

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from research.errors import BadInput

PLACES = {  # flag: what it takes, and what that is
    "runs": ("DIR", "a run, or the workdir of runs"),
    "run": ("ID", "of the runs of a workdir this one; default: the one with the lowest loss"),
    "export": ("DIR", "what isoflop export wrote, or hf:FOLDER"),
    "key_file": ("FILE", "the key of an encrypted export"),
    "verify": ("FILE", "the public key that an export must be signed with"),
}
# flag: default, whether a value is good, what is
FLAGS = {
    "prompt": ("", len, "what the text begins with, at least one token"),
    "tokens": (200, lambda n: 1 <= n < 2**31, "a whole number of at least 1, below 2^31"),
    "temperature": (0.8, lambda t: 0 <= t < float("inf"), "a number of at least 0; 0 is greedy"),
    "top_k": (40, lambda k: 0 <= k < 2**31, "a whole number of at least 0; 0 is all tokens"),
    "top_p": (0.95, lambda p: 0 < p <= 1, "a number above 0 and at most 1; 1 is all tokens"),
    "seed": (0, lambda n: 0 <= n < 2**32, "a whole number from 0 to below 2^32"),
    "samples": (1, lambda n: 1 <= n < 2**31, "a whole number of at least 1, below 2^31"),
}


KINDS = {str: str, int: Integral, float: Real}  # with those of numpy


def check_numbers(numbers: Mapping[str, Any], dashes: str, others: Sequence[str] = ()) -> None:
    """Raises BadInput for values of FLAGS that are no good, and for what `others` say is wrong."""
    wrong = []
    for name, value in numbers.items():
        default, good, words = FLAGS[name]
        if (
            isinstance(value, bool)
            or not isinstance(value, KINDS[type(default)])
            or not good(value)
        ):
            wrong.append(f"{dashes}{name}={value}: expected {words}")
    if wrong or others:
        raise BadInput(*wrong, *others)
