"""Tasks that language models of ten thousand parameters and more can partly learn, without a
download: what continues a text, of several options.

An item is a pure function of (task, seed, index), that of `cloze` also of the held-out text. The
right option is as likely to be at any place, so whoever guesses is right with the chance of the
task.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from research.data import Split
from research.data.sampling import GOLDEN, splitmix64
from research.errors import BadInput

SUITE = 1  # increased when an item or the way it is scored changes
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = (  # of one length, so that no option is longer than another
    *("time", "line", "list", "name", "type", "data", "file", "code", "test", "read", "call"),
    *("path", "size", "true", "node", "work", "part", "form", "open", "next", "text", "word"),
    *("hand", "back", "side", "head", "long", "turn", "move", "play", "last", "page"),
)
BRACKETS = {"(": ")", "[": "]", "{": "}"}
OPTIONS = 4
CLOZE_TOKENS = 16  # of an option; half of the context where that is less
TRIES = 64  # places that are looked at for one that differs


class Item(NamedTuple):
    """What continues `context`: one of `options`, the one numbered `answer`."""

    context: str
    options: tuple[str, ...]
    answer: int


class TokenItem(NamedTuple):
    """The same in token ids."""

    context: np.ndarray
    options: tuple[np.ndarray, ...]
    answer: int


@dataclass(frozen=True)
class Task:
    """`make` draws an item of text; without it the items are `cloze_item`, of held-out tokens."""

    chance: float
    make: "Callable[[Draws], Item] | None" = None


class Draws:
    """Numbers that (task, seed, index) decides, in the order in which they are drawn."""

    def __init__(self, task: str, seed: int, index: int):
        self.state = splitmix64(np.array([zlib.crc32(task.encode())], np.uint64))
        for number in (seed, index):
            self.state = splitmix64(self.state ^ np.uint64(number))

    def below(self, n: int) -> int:
        """A number from 0 to below n."""
        self.state = self.state + GOLDEN
        return int(splitmix64(self.state)[0] % np.uint64(n))

    def some(self, of: Sequence, k: int) -> list:
        """k different ones of a sequence, in any order."""
        left = list(of)
        return [left.pop(self.below(len(left))) for _ in range(k)]

    def item(self, context: str, right: str, wrong: Sequence[str]) -> Item:
        """The item whose right option is at any place."""
        options, at = list(wrong), self.below(len(wrong) + 1)
        options.insert(at, right)
        return Item(context, tuple(options), at)


def _string(draws: Draws, length: int) -> str:
    return "".join(LETTERS[draws.below(len(LETTERS))] for _ in range(length))


def copy(draws: Draws) -> Item:
    """A string once more, after two that were: of four random strings."""
    strings: list[str] = []
    while len(strings) < 2 + OPTIONS:
        if (string := _string(draws, 6)) not in strings:
            strings.append(string)
    first, second, right, *wrong = strings
    context = f"{first} {first}\n{second} {second}\n{right}"
    return draws.item(context, f" {right}", [f" {string}" for string in wrong])


def repetition(draws: Draws) -> Item:
    """The next word of a list that is said again: of four words of it."""
    words = draws.some(WORDS, 6)
    at = 2 + draws.below(3)
    wrong = draws.some([word for word in words if word not in (words[at], words[at - 1])], 3)
    context = " ".join([*words, *words[:at]])
    return draws.item(context, f" {words[at]}", [f" {word}" for word in wrong])


def brackets(draws: Draws) -> Item:
    """The bracket that closes the last open one: of the three kinds. Something is open at all
    times, and what stands last may be closed already."""
    kinds = [*BRACKETS]
    open_ = [kinds[draws.below(3)]]
    text = open_[0]
    for _ in range(7 + draws.below(5)):
        what = draws.below(3)
        if what == 0 and len(open_) > 1:
            text += BRACKETS[open_.pop()]
        elif what == 1:
            text += LETTERS[draws.below(len(LETTERS))]
        else:
            open_.append(kinds[draws.below(3)])
            text += open_[-1]
    right = BRACKETS[open_[-1]]
    return draws.item(text, right, [close for close in BRACKETS.values() if close != right])


def arithmetic(draws: Draws) -> Item:
    """A sum or difference of one digit, after three of them: of the ten digits, each of which is
    right as often as the others."""
    lines = []
    for _ in range(4):
        answer = draws.below(10)
        if draws.below(2):
            other = draws.below(answer + 1)
            lines.append((f"{answer - other}+{other}=", str(answer)))
        else:
            other = draws.below(10 - answer)
            lines.append((f"{answer + other}-{other}=", str(answer)))
    *before, (asked, right) = lines
    context = "".join(f"{question}{answer}\n" for question, answer in before) + asked
    return draws.item(context, right, [digit for digit in "0123456789" if digit != right])


TASKS = {
    "cloze": Task(1 / OPTIONS),
    "copy": Task(1 / OPTIONS, copy),
    "repetition": Task(1 / OPTIONS, repetition),
    "brackets": Task(1 / len(BRACKETS), brackets),
    "arithmetic": Task(1 / 10, arithmetic),
}


def item(task: str, seed: int, index: int) -> Item:
    """The item of a task of text."""
    make = TASKS[task].make
    assert make
    return make(Draws(task, seed, index))


def cloze_item(text: Split, seed: int, index: int) -> TokenItem:
    """How a window of held-out text ends: as it does, or as others do. Raises BadInput where there
    are too few that end in different ways."""
    draws, ends = Draws("cloze", seed, index), []
    right, whole = -1, np.zeros(0, np.int32)
    for _ in range(TRIES):
        if len(ends) == OPTIONS or not len(text):
            break
        rows = text.rows(np.array([draws.below(len(text))]))
        stream = np.concatenate([rows["inputs"][0, :1], rows["targets"][0]])
        length = min(CLOZE_TOKENS, (len(stream) - 1) // 2)
        if not ends:
            whole = stream[:-length]
        if not any(np.array_equal(stream[-length:], end) for end in ends):
            ends.append(stream[-length:])
    if len(ends) < OPTIONS:
        raise BadInput(
            f"{len(text)} windows of held-out text; expected {OPTIONS} that end differently"
        )
    right = draws.below(OPTIONS)
    ends.insert(right, ends.pop(0))
    return TokenItem(whole, tuple(ends), right)
