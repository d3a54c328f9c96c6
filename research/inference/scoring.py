"""How likely a trained model finds a continuation.

Sequences are padded to few lengths, so that few programs are compiled. Dimensions: B sequences,
T time, V vocabulary.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from research import models
from research.inference.load import OpenedRun
from research.models import Model
from research.models.device_scope import on_device_of

SHORTEST = 16  # tokens to which a sequence is padded at least
MOST_ROWS = 64
MOST_LOGITS = 1 << 25  # in memory at once, in all rows

Ids = Sequence[int] | np.ndarray


class Score(NamedTuple):
    """The log-likelihood of a continuation in nats, and whether each of its tokens is the
    likeliest."""

    log_likelihood: float
    greedy: bool


class Piece(NamedTuple):
    """A stretch of a sequence that a model reads at once: the last `scored` of its tokens are
    predicted, from all before them."""

    tokens: np.ndarray
    scored: int
    of: int  # the number of its sequence


class Scorer:
    """A trained model that scores continuations. `context` is how many tokens it reads at most:
    what is longer lost its beginning."""

    def __init__(self, opened: OpenedRun, separator: int):
        fields = opened.model.described()
        # Kernels of an accelerator need its platform, and shapes that are multiples of theirs.
        if "attention" in fields:
            fields["attention"] = "own"
        self.model = models.build(**fields)
        self.params = jax.device_put(opened.params)
        self.separator = separator
        self.context = int(self.model.spec.context)

    def score(self, pairs: Sequence[tuple[Ids, Ids]]) -> list[Score]:
        """The score of every (context, continuation). The empty context is the separator of
        documents, which every text follows; a continuation that is longer than the model's context
        is read in stretches, each with as much before it as fits."""
        made = [piece for i, pair in enumerate(pairs) for piece in self._pieces(i, *pair)]
        log_likelihood, greedy = np.zeros(len(pairs)), np.ones(len(pairs), bool)
        for batch, rows, length in self._batches(made):
            sums, likeliest = self._read(batch, rows, length)
            for piece, x, all_ in zip(batch, sums, likeliest, strict=False):
                log_likelihood[piece.of] += x
                greedy[piece.of] &= all_
        return [Score(float(x), bool(g)) for x, g in zip(log_likelihood, greedy, strict=True)]

    def continuations(
        self, prompts: Sequence[Ids], over: Callable[[int, Sequence[int]], bool]
    ) -> list[list[int]]:
        """The likeliest tokens after each prompt, until `over` (number of the prompt, tokens so
        far). Every token is read anew with the last that fit: for short answers of many prompts,
        where `generate` would compile a program for every length of a prompt."""
        said: list[list[int]] = [[] for _ in prompts]
        begun = [[*map(int, prompt)] or [self.separator] for prompt in prompts]
        left = [i for i in range(len(prompts)) if not over(i, said[i])]
        while left:
            texts = [np.array([*begun[i], *said[i]][-self.context :], np.int32) for i in left]
            made = [Piece(np.append(text, 0), 1, i) for i, text in zip(left, texts, strict=True)]
            for batch, rows, length in self._batches(made):
                inputs_BxT, last_B = np.zeros((rows, length), np.int32), np.zeros(rows, np.int32)
                for row, piece in enumerate(batch):
                    last_B[row] = len(piece.tokens) - 2
                    inputs_BxT[row, : len(piece.tokens) - 1] = piece.tokens[:-1]
                with on_device_of(self.params):
                    tokens_B = _likeliest(self.model, self.params, inputs_BxT, last_B)
                tokens_B = jax.device_get(tokens_B)
                for piece, token in zip(batch, tokens_B, strict=False):
                    said[piece.of].append(int(token))
            left = [i for i in left if not over(i, said[i])]
        return said

    def _batches(self, made: Sequence[Piece]) -> Iterator[tuple[list[Piece], int, int]]:
        """What is read at once: pieces, and the rows and the length that they are padded to."""
        for length, pieces in _by_length(made, self.context).items():
            rows = min(MOST_ROWS, max(1, MOST_LOGITS // (length * self.model.spec.vocab)))
            for start in range(0, len(pieces), rows):
                yield pieces[start : start + rows], rows, length

    def _pieces(self, number: int, before: Ids, continuation: Ids) -> Iterator[Piece]:
        before = before if len(before) else [self.separator]
        whole = np.concatenate([np.asarray(before, np.int32), np.asarray(continuation, np.int32)])
        for start in range(len(before), len(whole), self.context):
            end = min(start + self.context, len(whole))
            yield Piece(whole[max(0, end - self.context - 1) : end], end - start, number)

    def _read(
        self, pieces: Sequence[Piece], rows: int, length: int
    ) -> tuple[np.ndarray, np.ndarray]:
        inputs_BxT, targets_BxT = np.zeros((2, rows, length), np.int32)
        scored_BxT = np.zeros((rows, length), bool)
        for i, (tokens, scored, _) in enumerate(pieces):
            n = len(tokens) - 1
            inputs_BxT[i, :n], targets_BxT[i, :n] = tokens[:-1], tokens[1:]
            scored_BxT[i, n - scored : n] = True
        with on_device_of(self.params):
            out = _log_likelihoods(self.model, self.params, inputs_BxT, targets_BxT, scored_BxT)
        return jax.device_get(out)


def _by_length(pieces: Sequence[Piece], longest: int) -> dict[int, list[Piece]]:
    """The pieces by the length that they are padded to."""
    out: dict[int, list[Piece]] = {}
    for piece in pieces:
        length = SHORTEST
        while length < len(piece.tokens) - 1:
            length *= 2
        out.setdefault(min(length, longest), []).append(piece)
    return dict(sorted(out.items()))


@functools.partial(jax.jit, static_argnums=0)
def _log_likelihoods(
    model: Model, params: dict, inputs_BxT: Array, targets_BxT: Array, scored_BxT: Array
) -> tuple[Array, Array]:
    """Of the scored targets of each row: the sum of their log-probabilities [B], and whether all
    are the likeliest [B]."""
    B, T = inputs_BxT.shape
    logits_BxTxV = model.unembed(params, model.apply(params, inputs_BxT)).reshape(B, T, -1)
    right_BxT = jnp.take_along_axis(logits_BxTxV, targets_BxT[..., None], axis=-1)[..., 0]
    log_p_BxT = right_BxT - jax.nn.logsumexp(logits_BxTxV, axis=-1)
    likeliest_BxT = jnp.argmax(logits_BxTxV, axis=-1) == targets_BxT
    return jnp.where(scored_BxT, log_p_BxT, 0.0).sum(-1), (likeliest_BxT | ~scored_BxT).all(-1)


@functools.partial(jax.jit, static_argnums=0)
def _likeliest(model: Model, params: dict, inputs_BxT: Array, last_B: Array) -> Array:
    """The likeliest token [B] after the one at `last_B` of each row."""
    B, T = inputs_BxT.shape
    hidden_BxTxD = model.apply(params, inputs_BxT).reshape(B, T, -1)
    last_BxD = jnp.take_along_axis(hidden_BxTxD, last_B[:, None, None], axis=1)[:, 0]
    return jnp.argmax(model.unembed(params, last_BxD), axis=-1)
