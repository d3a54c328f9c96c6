"""The log-likelihood of a continuation is that of reading it token by token, however sequences are
padded, batched and cut."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import models
from research.inference import scoring
from research.inference.load import OpenedRun
from research.inference.scoring import Scorer
from tests.models import test_gru, test_models

pytestmark = pytest.mark.usefixtures("barely_optimized")

FIELDS = {"transformer": test_models.SMALL, "gru": test_gru.SMALL}
SEPARATOR, CONTEXT = 0, 16
RNG = np.random.default_rng(0)
PAIRS = [  # (context, continuation) by their lengths: within the context, over it, far over it
    (RNG.integers(1, 61, n), RNG.integers(1, 61, m))
    for n, m in [(3, 2), (0, 5), (15, 1), (16, 1), (12, 9), (40, 3), (2, 37), (0, 33), (1, 1)]
]


def untrained(name, fields, folder):
    """A model as it is drawn, but for its logits: at first it is nearly indifferent, and sharper
    ones make continuations differ."""
    model = models.build(name, **fields)
    params = model.init(jax.random.key(0), np.zeros((1, CONTEXT), np.int32))
    table = params["embed"] if model.spec.tie_embeddings else params["head"]
    table.update({k: 3 * v for k, v in table.items()})
    return OpenedRun(folder, 1, model, params, "", {})


@pytest.fixture(scope="module", params=FIELDS)
def opened(request, tmp_path_factory):
    return untrained(request.param, FIELDS[request.param], tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def scores(opened):
    return Scorer(opened, SEPARATOR).score(PAIRS)


@functools.partial(jax.jit, static_argnums=0)
def read(model, params, ids):
    return model.unembed(params, model.apply(params, ids))


def plainly(opened, context, continuation, shift=0):
    """The same, one token after the other: each is predicted from a stretch that begins where that
    of its continuation does."""
    before = [*context] or [SEPARATOR]
    whole, total, greedy = [*map(int, before), *map(int, continuation)], 0.0, True
    for start in range(len(before), len(whole), CONTEXT):
        end = min(start + CONTEXT, len(whole))
        begin = max(0, end - CONTEXT - 1)
        for at in range(start, end):
            ids = np.zeros((1, CONTEXT), np.int32)
            ids[0, : at - begin] = whole[begin:at]
            logits = np.asarray(read(opened.model, opened.params, ids), np.float64)[at - begin - 1]
            token = whole[min(at + shift, len(whole) - 1)]
            total += logits[token] - jax.nn.logsumexp(jnp.asarray(logits, jnp.float32))
            greedy &= int(np.argmax(logits)) == token
    return float(total), bool(greedy)


@pytest.mark.parametrize("i", range(len(PAIRS)))
def test_it_is_the_sum_over_tokens_read_one_by_one(opened, scores, i):
    expected, greedy = plainly(opened, *PAIRS[i])
    assert scores[i].log_likelihood == pytest.approx(expected, rel=1e-5)
    assert scores[i].greedy == greedy
    if len(PAIRS[i][1]) > 1:
        assert plainly(opened, *PAIRS[i], shift=1)[0] != pytest.approx(expected, rel=1e-3)


def test_what_a_model_would_say_is_greedy_and_nothing_else(opened):
    ids = [5, 7]
    for _ in range(6):
        padded = np.array([[*ids, *[0] * (CONTEXT - len(ids))]], np.int32)
        ids.append(int(jnp.argmax(read(opened.model, opened.params, padded)[len(ids) - 1])))
    said, other = ids[2:], [*ids[2:-1], (ids[-1] + 1) % 61]
    first, second = Scorer(opened, SEPARATOR).score([(ids[:2], said), (ids[:2], other)])
    assert (first.greedy, second.greedy) == (True, False)


def test_a_score_does_not_depend_on_what_is_scored_beside_it(opened, scores):
    scorer = Scorer(opened, SEPARATOR)
    for pair, among in zip(PAIRS, scores, strict=True):
        (alone,) = scorer.score([pair])
        assert alone.log_likelihood == pytest.approx(among.log_likelihood, rel=1e-6)
    assert len({round(score.log_likelihood, 3) for score in scores}) == len(scores)


def test_what_is_further_away_than_the_context_changes_nothing(opened):
    context, continuation = PAIRS[
        5
    ]  # 40 and 3, of which the last is no input: the first 26 are not read
    far, near = context.copy(), context.copy()
    far[:26], near[26] = 9, (context[26] + 1) % 61
    whole, cut, other = Scorer(opened, SEPARATOR).score(
        [(context, continuation), (far, continuation), (near, continuation)]
    )
    assert whole == cut
    assert whole != other


def test_the_empty_context_is_the_separator(opened):
    continuation = PAIRS[1][1]
    empty, told, other = Scorer(opened, SEPARATOR).score(
        [([], continuation), ([SEPARATOR], continuation), ([3], continuation)]
    )
    assert empty == told
    assert empty != other


def test_many_lengths_are_few_programs(opened):
    scoring._log_likelihoods.clear_cache()
    scorer = Scorer(opened, SEPARATOR)
    scorer.score([(PAIRS[6][1][:n], [1, 2]) for n in range(1, 30)])
    assert scoring._log_likelihoods._cache_size() == 1  # a context of 16 has one length
    assert [
        *scoring._by_length([scoring.Piece(np.zeros(n), 1, 0) for n in range(2, 130)], 100)
    ] == [*(16, 32, 64, 100)]
