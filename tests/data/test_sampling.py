"""The order of the examples: each once an epoch, as if drawn, by the position alone, in O(1)."""

import tracemalloc

import numpy as np
import pytest
from scipy import stats

from research.data import placeholder
from research.data.mixture_sampling import CYCLE, shuffled_mixture
from research.data.sampling import random_bits, shuffled

PRIMES = (2, 3, 5, 7, 13, 61, 67, 101, 997, 7919)
AROUND_POWERS = [2**k + d for k in (2, 3, 5, 6, 7, 10, 16) for d in (-1, 0, 1)]
COUNTS = sorted({1, *PRIMES, *AROUND_POWERS, 12, 100, 10**6})


def batch(seed, step, size, n):
    return shuffled(seed, step * size + np.arange(size), n)


def epochs(seed, count, n):
    """The order [count, n] of the first epochs."""
    return shuffled(seed, np.arange(count * n), n).reshape(count, n)


@pytest.mark.parametrize("n", COUNTS)
def test_an_epoch_visits_each_example_once(n):
    for order in epochs(5, 1 if n > 10**5 else 2, n):
        np.testing.assert_array_equal(np.sort(order), np.arange(n))


def test_every_epoch_and_every_seed_has_an_order_of_its_own():
    orders = np.concatenate([epochs(seed, 4, 101) for seed in (0, 1, 2, 2**60)])
    assert len(np.unique(orders, axis=0)) == 16
    # no more places are equal than by chance: one, on average, in each of the 120 pairs
    equal = sum((orders[i] == orders[j]).sum() for i in range(16) for j in range(i))
    assert 60 < equal < 190


def test_the_order_is_a_function_of_seed_and_step_alone():
    forwards = [batch(3, step, 8, 50) for step in range(40)]
    for step in reversed(range(40)):
        np.testing.assert_array_equal(batch(3, step, 8, 50), forwards[step])
    assert any((batch(4, s, 8, 50) != forwards[s]).any() for s in range(3))


def test_the_order_of_the_examples_does_not_depend_on_the_batch_size():
    flat = [np.concatenate([batch(0, s, b, 77) for s in range(96 // b)]) for b in (1, 8, 32, 96)]
    for other in flat[1:]:
        np.testing.assert_array_equal(flat[0], other)


@pytest.mark.parametrize("order", ["alone", "mixed"])
def test_processes_that_ask_for_their_rows_see_those_of_the_whole_batch(order):
    def ask(position):
        if order == "alone":
            return shuffled(7, position, 300)
        return shuffled_mixture(7, position, [100, 30, 170], [1.0, 2.0, 3.0])

    position = 64 * 9 + np.arange(64)
    whole = ask(position)
    rows = np.random.default_rng(0).permutation(64)
    for parts in (1, 2, 8):
        asked = np.concatenate([ask(position[part]) for part in np.split(rows, parts)])
        np.testing.assert_array_equal(asked, whole[rows])
    assert (ask(position + 64) != whole).any()


# Chi-square tests. Each has a twin: an order that it must reject.
LIKELY, UNLIKELY = 1e-4, 1e-9


def chi_square(counts):
    expected = counts.sum() / counts.size
    return stats.chi2.sf(((counts - expected) ** 2 / expected).sum(), counts.size - 1)


def place_and_value(orders):
    """p of that every example is as likely in every place, from orders [K, n] with a new key each.

    The last row and column of the table follow from the others: (n − 1)² degrees of freedom.
    """
    K, n = orders.shape
    counts = np.bincount((orders + n * np.arange(n)).ravel(), minlength=n * n)
    return stats.chi2.sf(((counts - K / n) ** 2 / (K / n)).sum(), (n - 1) ** 2)


def neighbors(orders):
    """p of that all pairs of unequal examples are as likely to follow each other at the start."""
    n = orders.shape[1]
    table = np.bincount(orders[:, 0] * n + orders[:, 1], minlength=n * n).reshape(n, n)
    assert not table.diagonal().any()
    return chi_square(table[~np.eye(n, dtype=bool)])


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 7, 8, 11, 16, 23, 64, 100])
def test_every_example_is_as_likely_in_every_place_and_after_every_other(n):
    orders = epochs(1, 40_000, n)
    assert place_and_value(orders) > LIKELY
    assert neighbors(orders) > LIKELY


def test_a_rotation_and_a_net_of_two_rounds_are_rejected(monkeypatch):
    rotated = (np.arange(16) + np.random.default_rng(0).integers(16, size=(40_000, 1))) % 16
    assert place_and_value(rotated) > LIKELY  # each alone is as it should be
    assert neighbors(rotated) < UNLIKELY
    twice = epochs(1, 40_000, 16)
    twice[: len(twice) // 50] = np.arange(16)  # one epoch in fifty is in the order of the file
    assert place_and_value(twice) < UNLIKELY
    monkeypatch.setattr("research.data.sampling.SMALL_ROUNDS", 4)
    assert neighbors(epochs(1, 40_000, 16)) < UNLIKELY


def test_within_an_epoch_of_a_million_neighbors_are_independent():
    def p(order):
        cells = order * 20 // len(order)
        return chi_square(np.bincount(cells[:-1] * 20 + cells[1:], minlength=400))

    order = epochs(2, 1, 10**6)[0]
    assert p(order) > LIKELY
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.005
    assert p((order + np.arange(10**6)) % 10**6) > LIKELY
    near = np.arange(10**6) + np.random.default_rng(0).integers(-(10**5), 10**5, 10**6)
    assert p(np.argsort(near)) < UNLIKELY  # a shuffle in a buffer


@pytest.mark.parametrize("n", [10**9, placeholder.MANY])
def test_memory_does_not_grow_with_the_number_of_examples(n):
    def peak(count):
        shuffled(0, np.arange(32), count)
        tracemalloc.start()
        index = shuffled(0, 3 * count - 16 + np.arange(32), count)  # across two epochs
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert index.dtype == np.int64
        assert ((index >= 0) & (index < count)).all()
        assert len(set(index[:16])) == len(set(index[16:])) == 16
        return used

    assert peak(n) < 2 * peak(1000) < 100_000


def test_a_part_of_the_largest_set_is_spread_over_all_of_it():
    n = placeholder.MANY
    index = shuffled(0, np.arange(100_000), n)
    assert len(np.unique(index)) == 100_000
    assert chi_square(np.bincount(index * 100 // n, minlength=100)) > LIKELY
    assert chi_square(np.bincount(index % 101, minlength=101)) > LIKELY
    assert chi_square(np.bincount(np.arange(100_000) * 100 // n, minlength=100)) < UNLIKELY


def test_sources_of_a_mixture_are_shuffled_each_by_itself():
    order = shuffled_mixture(3, np.arange(2 * CYCLE), [512, 2048], [1.0, 1.0])
    first, second = order[order < 512], order[order >= 512]
    assert len(first) == len(second) == CYCLE
    for i in range(8):
        np.testing.assert_array_equal(np.sort(first[512 * i : 512 * (i + 1)]), np.arange(512))
    np.testing.assert_array_equal(np.sort(second[:2048]), np.arange(512, 2560))
    assert (first[:512] != first[512:1024]).any()


def test_random_bits_are_those_of_the_position():
    whole = random_bits(5, np.arange(64))
    np.testing.assert_array_equal(random_bits(5, np.arange(40, 48)), whole[40:48])
    assert len(np.unique(whole)) == 64
    assert not set(random_bits(6, np.arange(64))) & set(whole)
