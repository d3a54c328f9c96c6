"""Masked tokens: which are asked about, what the model is shown, and what it cannot see."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import data, models
from research.errors import BadInput
from research.params import leaves_by_path
from research.training.gradient_accumulation import mean_loss_and_gradient
from research.training.language_modeling import LanguageModeling
from research.training.make_run import make_run
from research.training.masked_language_modeling import (
    HIDDEN,
    NOT_ASKED,
    RANDOM,
    MaskedLanguageModeling,
    mask,
)
from tests.models.test_models import SMALL
from tests.models.test_models import build as causal

pytestmark = pytest.mark.usefixtures("barely_optimized")

VOCAB, SEPARATOR, SHARE = 61, 0, 0.15
TASK = MaskedLanguageModeling(chunk=None, share=SHARE)
VARIANTS = [
    {},
    {"norm": "layer", "positions": "learned", "activation": "gelu", "tie_embeddings": True},
    {"kv_heads": 2, "qk_norm": True, "remat": "full"},
]


def build(**changes):
    return models.build("encoder", **{k: v for k, v in SMALL.items() if k != "attention"} | changes)


def windows(rows=64, length=128, seed=0):
    return np.random.default_rng(seed).integers(0, VOCAB, (rows, length), np.int32)


def masked(tokens, seed=1, share=SHARE):
    bits = np.random.default_rng(seed).integers(0, 2**64, len(tokens), np.uint64)
    return mask(tokens, bits, share, VOCAB, SEPARATOR)


def away(hits, trials, share):
    """By how many standard deviations of a binomial a count is off."""
    return abs(hits - trials * share) / np.sqrt(trials * share * (1 - share))


@pytest.mark.parametrize("share", [0.15, 0.4])
def test_the_shares_are_those_of_the_rule(share):
    tokens = windows(2000)
    batch = masked(tokens, share=share)
    asked = batch["targets"] != NOT_ASKED
    ordinary = tokens != SEPARATOR
    assert away(asked.sum(), ordinary.sum(), share) < 4
    assert away(asked.sum(), ordinary.sum(), share + 0.01) > 4  # what another share would give
    shown, was = batch["inputs"][asked], tokens[asked]
    assert (HIDDEN, RANDOM) == (0.8, 0.1)  # as Devlin et al. 2019
    same = RANDOM / VOCAB  # a random token may be the token itself
    assert away((shown == VOCAB).sum(), len(was), HIDDEN) < 4
    assert away((shown == was).sum(), len(was), 1 - HIDDEN - RANDOM + same) < 4
    others = shown[(shown != VOCAB) & (shown != was)]
    assert away(len(others), len(was), RANDOM - same) < 4
    assert away(len(others), len(was), 2 * RANDOM) > 4
    counts = np.bincount(others, minlength=VOCAB)
    assert counts.min() > 0.5 * counts.mean()
    assert len(counts) == VOCAB  # never the mask itself
    np.testing.assert_array_equal(batch["targets"][asked], was)
    np.testing.assert_array_equal(batch["inputs"][~asked], tokens[~asked])


def test_each_position_is_asked_about_as_often_and_none_with_another():
    asked = masked(windows(4000, 16) + 1)["targets"] != NOT_ASKED
    assert max(away(n, 4000, SHARE) for n in asked.sum(0)) < 4.5
    together = np.corrcoef(asked.T) - np.eye(16)
    assert np.abs(together).max() < 0.1


def test_a_separator_is_never_asked_about():
    tokens = np.where(np.arange(128) % 3 == 0, SEPARATOR, windows(500) % 60 + 1).astype(np.int32)
    asked = masked(tokens)["targets"] != NOT_ASKED
    assert not asked[tokens == SEPARATOR].any()
    bits = np.arange(500, dtype=np.uint64)
    unknown = mask(tokens, bits, SHARE, VOCAB, None)["targets"] != NOT_ASKED
    assert unknown[tokens == SEPARATOR].any()  # the twin: where no separator is known


def test_every_window_has_a_token_that_is_asked_about():
    asked = masked(windows(500, 4) + 1, share=0.01)["targets"] != NOT_ASKED
    assert (asked.sum(1) >= 1).all()
    assert (np.random.default_rng(0).random((500, 4)) < 0.01).any(1).mean() < 0.1  # by chance
    nothing = masked(np.full((3, 4), SEPARATOR, np.int32))["targets"]
    assert (nothing == NOT_ASKED).all()


@pytest.fixture(scope="module")
def run(tiny):
    return make_run(tiny(MASKED))


ENCODER = {"model.name": "encoder"}
MASKED = ENCODER | {"task.name": "masked_language_modeling", "task.share": SHARE}


def test_training_masks_follow_seed_step_and_position_alone(run):
    whole = run.data.batch(0, 3, 8)
    rows = run.data.batch(0, 3, 8, np.array([5, 2]))
    for name, x in whole.items():
        np.testing.assert_array_equal(x[[5, 2]], rows[name])
    wider = run.data.batch(0, 1, 24)  # the same positions of the stream, in fewer steps
    np.testing.assert_array_equal(wider["inputs"][:8], whole["inputs"])
    changed = run.data.batch(1, 3, 8)
    assert (whole["inputs"] != changed["inputs"]).any()
    length = len(run.data.train)
    epochs = [run.data.train.rows(np.arange(4), np.arange(4, dtype=np.uint64) + k) for k in (0, 9)]
    assert (epochs[0]["targets"] != epochs[1]["targets"]).any()
    assert length > 100


def test_evaluation_masks_follow_the_window_alone(run, tiny):
    again = make_run(tiny(MASKED | {"seed": 5, "data.seed": 9, "model.depth": 1}))
    index = np.array([3, 11, 4])
    first, other = (r.data.heldout.rows(index) for r in (run, again))
    for name, x in first.items():
        np.testing.assert_array_equal(x, other[name])
    alone = run.data.heldout.rows(np.array([11]))
    np.testing.assert_array_equal(first["targets"][1], alone["targets"][0])
    tokens = run.data.heldout.split.rows(index)["inputs"]
    changed = tokens.copy()
    changed[1, 0] += 1
    one, two = (
        dataclasses.replace(run.data.heldout, split=Fixed(x)).rows(np.arange(3))["targets"]
        for x in (tokens, changed)
    )
    np.testing.assert_array_equal(one, first["targets"])
    assert ((one != two).any(1) == [False, True, False]).all()  # by another window, another mask


class Fixed:
    def __init__(self, tokens):
        self.tokens = tokens

    def rows(self, index, draw=None):
        return {"inputs": self.tokens[index]}


@functools.partial(jax.jit, static_argnums=0)
def logits(model, params, tokens):
    return model.unembed(params, model.apply(params, tokens)).reshape(*tokens.shape, -1)


@pytest.mark.parametrize("changes", VARIANTS)
def test_a_masked_token_leaks_from_nowhere_and_both_sides_are_seen(changes):
    model = build(**changes)
    tokens = windows(1, 16)
    params = model.init(jax.random.key(0), tokens)
    at = 7
    hidden = tokens.copy()
    hidden[0, at] = VOCAB

    def at_position(tokens):
        return np.asarray(logits(model, params, jnp.asarray(tokens)))[0, at]

    def with_token(where, token):
        """What the batch shows where the tokens `where` and `at` are other ones, `at` masked."""
        text = tokens.copy()
        text[0, where] = token
        text[0, at] = VOCAB
        return text

    before = at_position(hidden)
    for token in (1, 2, 3):  # the token that is hidden
        np.testing.assert_array_equal(at_position(with_token(at, token)), before)
    for where in (0, at - 1, at + 1, 15):  # its neighbors, on both sides
        assert np.abs(at_position(with_token(where, 60 - tokens[0, where])) - before).max() > 1e-4
    seen = tokens.copy()
    seen[0, at] = 60 - tokens[0, at]
    assert np.abs(at_position(seen) - at_position(tokens)).max() > 1e-4  # the twin: not masked


def test_a_causal_model_sees_nothing_to_the_right():
    model, tokens = causal(), windows(1, 16)
    params = model.init(jax.random.key(0), tokens)
    later = tokens.copy()
    later[0, 8:] = 60 - later[0, 8:]
    both = [np.asarray(logits(model, params, x))[0] for x in (tokens, later)]
    np.testing.assert_array_equal(both[0][:8], both[1][:8])
    assert np.abs(both[0][8:] - both[1][8:]).max() > 1e-4
    twin = build()
    params = twin.init(jax.random.key(0), tokens)
    both = [np.asarray(logits(twin, params, x))[0] for x in (tokens, later)]
    assert np.abs(both[0][:8] - both[1][:8]).max() > 1e-4


def test_a_classifier_does_not_see_padding():
    fields = {k: v for k, v in SMALL.items() if k != "attention"}
    model = models.build("encoder", **fields, classes=3, pad=0)
    tokens = windows(2, 16) % 60 + 1
    tokens[:, 10:] = 0
    params = model.init(jax.random.key(0), tokens)
    apply = jax.jit(models.Model.apply, static_argnums=0)
    padded = apply(model, params, tokens)
    np.testing.assert_allclose(padded, apply(model, params, tokens[:, :10]), rtol=1e-5, atol=1e-6)
    unmasked = models.build("encoder", **fields, classes=3, pad=60)  # the twin: text, not padding
    assert np.abs(padded - apply(unmasked, params, tokens)).max() > 1e-3


def batch_of(rows=8, seed=0):
    return {k: jnp.asarray(x) for k, x in masked(windows(rows, 16, seed)).items()}


@pytest.mark.parametrize("chunk", [0, 40])
def test_a_loss_in_parts_or_chunks_is_that_of_the_whole(chunk):
    model, batch = build(), batch_of()
    params = model.init(jax.random.key(0), batch["inputs"])
    counts = np.asarray((batch["targets"] != NOT_ASKED).sum(1))
    assert len(set(counts.tolist())) > 2  # rows that differ

    def loss_of(chunk, parts):
        task = MaskedLanguageModeling(chunk=chunk, share=SHARE)
        loss = lambda params, batch: task.loss(model, params, batch)  # noqa: E731
        return jax.jit(lambda p, b: mean_loss_and_gradient(loss, p, b, parts))(params, batch)

    whole, grads = loss_of(0, 1)
    direct = logits(model, params, batch["inputs"])
    asked = np.asarray(batch["targets"]) != NOT_ASKED
    target = np.where(asked, batch["targets"], 0)
    nats = -np.take_along_axis(np.asarray(jax.nn.log_softmax(direct)), target[..., None], -1)[
        ..., 0
    ]
    assert float(whole) == pytest.approx(nats[asked].mean(), rel=1e-5)
    by_row = np.mean([row[a].mean() for row, a in zip(nats, asked)])
    assert float(whole) != pytest.approx(by_row, rel=1e-3)  # the twin: rows that weigh the same
    for parts in (1, 4):
        loss, part_grads = loss_of(chunk, parts)
        assert float(loss) == pytest.approx(float(whole), rel=1e-5)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), part_grads, grads
        )


@pytest.mark.parametrize("chunk", [0, 20])
def test_metrics_are_means_over_the_tokens_asked_about(chunk):
    model, batch = build(), batch_of()
    params = model.init(jax.random.key(0), batch["inputs"])
    task = MaskedLanguageModeling(chunk=chunk, share=SHARE)
    sums = {
        k: np.asarray(x).sum()
        for k, x in jax.jit(task.terms, static_argnums=0)(model, params, batch).items()
    }
    got = task.metrics(sums, {})
    asked = np.asarray(batch["targets"]) != NOT_ASKED
    right = np.asarray(logits(model, params, batch["inputs"])).argmax(-1) == batch["targets"]
    assert got["accuracy"] == pytest.approx(np.asarray(right)[asked].mean())
    total, count = jax.jit(task.loss, static_argnums=0)(model, params, batch)
    assert got["loss"] == pytest.approx(float(total / count), rel=1e-5)
    assert float(count) == asked.sum() != asked.size


def test_flops_count_all_positions_and_the_whole_map():
    parts = build().forward_flops()
    assert parts == causal().forward_flops() | {"attention_causal": parts["attention_full"]}
    assert parts["head"] == 2 * 16 * 32 * 61
    assert causal().forward_flops()["attention_causal"] < parts["attention_causal"]


def test_a_run_counts_all_tokens_and_says_so(run, tiny):
    assert run.facts["tokens"] == 12 * 8 * 32
    assert run.facts["loss_unit"] == "nats per masked token"
    assert "tokens and FLOPs count all" in run.facts["rules"]
    assert run.facts["flops"] == run.facts["flops_exact_causal"]
    twin = make_run(tiny())
    assert twin.facts["tokens"] == run.facts["tokens"]
    assert twin.facts["flops"] > twin.facts["flops_exact_causal"]


def test_other_shares_are_other_runs(run, tiny):
    assert make_run(tiny(MASKED | {"task.share": 0.3})).id != run.id
    assert make_run(tiny(MASKED)).id == run.id


def test_a_task_and_a_model_that_do_not_fit_are_refused(tiny):
    with pytest.raises(BadInput, match=r"expected model\.name = encoder, or language_modeling"):
        make_run(tiny({k: v for k, v in MASKED.items() if k != "model.name"}))
    with pytest.raises(BadInput, match="expected masked_language_modeling"):
        make_run(tiny(ENCODER))
    assert make_run(tiny(MASKED))
    assert make_run(tiny())


def test_ids_without_words_have_no_separator(tmp_path):
    path = tmp_path / "ids.bin"
    np.tile(np.array([0, 1, 2, 3, 0], np.uint16), 500).tofile(path)
    names = {
        "path": str(path),
        "context": 16,
        "heldout": 0.1,
        "tokenizer": "bytes",
        "field": "text",
    }
    ids = data.load("text", vocab=VOCAB, undecodable="error", **names)
    assert TASK.prepared(ids, build()).train.separator is None
    path = tmp_path / "text.txt"
    path.write_text("\n".join(f"line {i}" for i in range(2000)))
    text = data.load("text", vocab=None, undecodable="error", **names | {"path": str(path)})
    assert TASK.prepared(text, build()).train.separator == 0
    assert LanguageModeling(chunk=0).prepared(text, causal()) is text


def test_the_mask_is_a_parameter_that_learns():
    model, batch = build(tie_embeddings=True), batch_of()
    params = model.init(jax.random.key(0), batch["inputs"])
    gradient = jax.jit(jax.grad(lambda p, batch: TASK.loss(model, p, batch)[0]))
    assert np.abs(leaves_by_path(gradient(params, batch))["mask/embedding"]).max() > 0
    seen = batch | {"inputs": jnp.where(batch["inputs"] == VOCAB, 1, batch["inputs"])}
    assert np.abs(leaves_by_path(gradient(params, seen))["mask/embedding"]).max() == 0
