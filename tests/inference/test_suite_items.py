"""Items are pure functions of task, seed and index; what is called right is right, and nothing else
is; who guesses is right with the chance that is told."""

import collections
import math

import numpy as np
import pytest

from research.data import text
from research.errors import BadInput
from research.inference import suite, suite_items

OF_TEXT = [name for name, task in suite_items.TASKS.items() if task.make]
MANY = 2000


def right_by(task, item):
    """The options of an item that are right by what the task says, read anew."""
    if task == "copy":
        return [o for o in item.options if o.strip() == item.context.split("\n")[-1]]
    if task == "repetition":
        words = item.context.split()
        first = words.index(words[-1])
        return [o for o in item.options if o.strip() == words[first + 1]]
    if task == "arithmetic":
        question = item.context.split("\n")[-1].removesuffix("=")
        sign = "+" if "+" in question else "-"
        a, b = map(int, question.split(sign))
        return [o for o in item.options if int(o) == (a + b if sign == "+" else a - b)]
    return [o for o in item.options if closes(item.context + o)]


def closes(text):
    """Whether the last character closes what is open; letters are nothing."""
    open_ = []
    for i, c in enumerate(text):
        if c in suite_items.BRACKETS:
            open_.append(c)
        elif c in suite_items.BRACKETS.values() and suite_items.BRACKETS[open_.pop()] != c:
            assert i == len(text) - 1, "an item closes what is not open"
            return False
    return True


@pytest.mark.parametrize("task", OF_TEXT)
def test_one_option_is_right_and_it_is_the_answer(task):
    for index in range(300):
        item = suite_items.item(task, 3, index)
        assert right_by(task, item) == [item.options[item.answer]]
        assert len({*item.options}) == len(item.options)
        assert len({len(option) for option in item.options}) == 1
    other = item._replace(context=suite_items.item(task, 3, 7).context)
    assert right_by(task, other) != [item.options[item.answer]] or task == "brackets"


def test_the_reading_of_brackets_sees_a_wrong_one():
    assert closes("([a]{b}x)")
    assert not closes("([a]{b}x]")
    assert not closes("([a]{b}[x)")


@pytest.mark.parametrize("task", OF_TEXT)
def test_an_item_is_a_function_of_task_seed_and_index(task):
    one = suite_items.item(task, 5, 9)
    assert suite_items.item(task, 5, 9) == one
    assert suite_items.item(task, 6, 9) != one
    assert suite_items.item(task, 5, 10) != one
    assert len({suite_items.item(task, 5, i) for i in range(200)}) > 195


def hits(items):
    """How often the best way to guess without reading is right: by place, or by what is said."""
    places = collections.Counter(item.answer for item in items)
    words = collections.Counter(item.options[item.answer] for item in items)
    return max(places.most_common(1)[0][1], words.most_common(1)[0][1])


@pytest.mark.parametrize("task", OF_TEXT)
def test_who_does_not_read_is_right_by_chance(task):
    chance = suite_items.TASKS[task].chance
    items = [suite_items.item(task, 0, index) for index in range(MANY)]
    assert all(len(item.options) == round(1 / chance) for item in items)
    # The best of ten ways to guess: four standard deviations above one of them.
    limit = MANY * chance + 4 * math.sqrt(MANY * chance * (1 - chance))
    assert hits(items) < limit
    skewed = [item for i, item in enumerate(items) if item.answer != 1 or i % 3]
    skewed += [item for item in items if item.answer == 0]
    assert hits(skewed[:MANY]) > limit or task == "arithmetic"


@pytest.fixture(scope="module")
def held_out(corpus):
    made = text.load(
        path=str(corpus), context=32, heldout=0.125, tokenizer="bytes", field="text", vocab=None
    )
    return made["heldout"]


def test_a_cloze_is_how_a_held_out_window_goes_on(held_out):
    whole = bytes(held_out.tokens.astype(np.uint8))
    for index in range(100):
        item = suite_items.cloze_item(held_out, 1, index)
        context, right = (
            bytes(x.astype(np.uint8)) for x in (item.context, item.options[item.answer])
        )
        assert len(item.options) == suite_items.OPTIONS
        assert len(context) + len(right) == 33
        assert context + right in whole
        others = [bytes(x.astype(np.uint8)) for i, x in enumerate(item.options) if i != item.answer]
        assert all(other in whole and context + other not in whole for other in others)
    again, other = (suite_items.cloze_item(held_out, 1, i) for i in (99, 98))
    assert all(np.array_equal(a, b) for a, b in zip(again.options, item.options))
    assert not np.array_equal(other.context, item.context)


def test_too_little_held_out_text_is_refused():
    class Same:
        def __len__(self):
            return 9

        def rows(self, index):
            tokens = np.ones((len(index), 8), np.int32)
            return {"inputs": tokens, "targets": tokens}

    class Different(Same):
        def rows(self, index):
            tokens = np.tile(np.int32(index)[:, None], 8)
            return {"inputs": tokens, "targets": tokens}

    with pytest.raises(BadInput, match="9 windows of held-out text; expected 4"):
        suite_items.cloze_item(Same(), 0, 0)
    assert len(suite_items.cloze_item(Different(), 0, 0).options) == suite_items.OPTIONS


def test_the_likeliest_option_is_the_answer_and_bytes_are_those_of_the_right_one():
    ids = np.arange(4)
    made = [suite_items.TokenItem(ids, (ids[:2], ids[:3]), answer) for answer in (0, 1, 1)]
    found = [np.array([-1.0, -2.0]), np.array([-3.0, -1.5]), np.array([-2.0, -4.0])]
    score = suite.summary(made, found, lambda before, after: 2 * len(after))
    assert score["accuracy"] == pytest.approx(2 / 3)
    assert score["standard_error"] == pytest.approx(np.std([1, 1, 0], ddof=1) / 3**0.5)
    assert score["bits_per_byte"] == pytest.approx((1 + 1.5 + 4) / np.log(2) / (4 + 6 + 6))
    worst = suite.summary(made, [-x for x in found], None)
    assert worst["accuracy"] == pytest.approx(1 / 3)
    assert "bits_per_byte" not in worst
