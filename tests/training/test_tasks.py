"""Metrics against scikit-learn's, and sums that do not depend on how examples are batched."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import models
from research.models.pooled_classifier import Pooled
from research.training import tasks
from research.training.classification import Classification
from research.training.language_modeling import LanguageModeling
from research.training.masked_language_modeling import MaskedLanguageModeling
from research.training.regression import Regression
from tests.models.test_models import SMALL

pytestmark = pytest.mark.usefixtures("barely_optimized")


class Table:
    """A "model" whose outputs are looked up: what is tested is the task alone."""

    def __init__(self, outputs):
        self.outputs = outputs

    def apply(self, params, inputs):
        return jnp.asarray(self.outputs)[inputs]


def scores(task, outputs, targets, notes=None, weights=None):
    batch = {"inputs": np.arange(len(targets)), "targets": jnp.asarray(targets)}
    terms = task.terms(Table(outputs), {}, batch)
    weights = np.ones(len(targets)) if weights is None else weights
    sums = {k: np.einsum("b,b...->...", weights, np.asarray(v)) for k, v in terms.items()}
    rows = {k: np.asarray(x)[np.asarray(weights) > 0] for k, x in batch.items()}
    return task.metrics(sums, (notes or {}) | task.examined(None, rows))


def classes(n=200, c=5, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, c)).astype(np.float32)
    targets = rng.integers(0, c - 1, n).astype(np.int32)  # the last class never occurs
    logits[np.arange(n), targets] += 1.0
    return logits, targets


def test_classification_is_that_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is the extra `data`")
    logits, targets = classes()
    got, said = scores(Classification(), logits, targets), logits.argmax(1)
    assert got["accuracy"] == pytest.approx(metrics.accuracy_score(targets, said))
    each = metrics.precision_recall_fscore_support(targets, said, zero_division=0, labels=range(5))
    for name, values in zip(("precision", "recall", "f1"), each, strict=False):
        np.testing.assert_allclose(got[f"class_{name}"], values, rtol=1e-6)
        assert got[f"macro_{name}"] == pytest.approx(values.mean())
    matrix = metrics.confusion_matrix(targets, said, labels=range(5))
    np.testing.assert_array_equal(got["confusion"], matrix)
    assert (matrix != matrix.T).any()  # rows and columns are not to be confused
    log_loss = metrics.log_loss(targets, jax.nn.softmax(logits), labels=range(5))
    assert got["loss"] == pytest.approx(log_loss, rel=1e-5)


def test_a_class_that_neither_occurs_nor_is_predicted_is_not_averaged_over():
    logits = np.eye(3, dtype=np.float32)[[0, 1, 0, 1]] * 9
    got = scores(Classification(), logits, np.array([0, 1, 0, 1], np.int32))
    assert got["macro_f1"] == got["accuracy"] == 1.0
    got = scores(Classification(), logits, np.array([0, 1, 0, 2], np.int32))
    assert got["macro_recall"] == pytest.approx(2 / 3)


def test_regression_is_that_of_scikit_learn_in_the_datas_own_units():
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is the extra `data`")
    rng = np.random.default_rng(0)
    scale = np.array([3.0, 0.5])
    targets = rng.normal(size=(300, 2)).astype(np.float32)
    outputs = (targets + 0.3 * rng.normal(size=(300, 2))).astype(np.float32)
    got = scores(Regression(), outputs, targets, {"target_scale": scale.tolist()})
    true, said = targets * scale, outputs * scale
    assert got["mse"] == pytest.approx(metrics.mean_squared_error(true, said), rel=1e-5)
    assert got["mae"] == pytest.approx(metrics.mean_absolute_error(true, said), rel=1e-5)
    assert got["r2"] == pytest.approx(metrics.r2_score(true, said), rel=1e-5)
    assert got["loss"] == pytest.approx(np.mean((outputs - targets) ** 2), rel=1e-5)
    assert got["mse"] != pytest.approx(got["loss"], rel=0.1)


@pytest.mark.parametrize("offset", [0, 1e3, 1e4, -1e6])
def test_r2_of_targets_far_from_zero_is_that_of_scikit_learn(offset):
    """As sums of squares in float32 it would be anything; compared with float64 on the same
    float32 numbers."""
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is the extra `data`")
    rng = np.random.default_rng(0)
    targets = (offset + rng.normal(size=(300, 2))).astype(np.float32)
    outputs = (targets + 0.7 * rng.normal(size=(300, 2))).astype(np.float32)
    got = scores(Regression(), outputs, targets)
    wide = targets.astype(np.float64)
    assert got["r2"] == pytest.approx(metrics.r2_score(wide, outputs.astype(np.float64)), rel=1e-5)
    mean, square = (x.mean(0, dtype=np.float32) for x in (targets, targets**2))
    in_float32 = np.mean(1 - got["mse"] / np.maximum(square - mean**2, 1e-30))
    assert abs(in_float32 - got["r2"]) > 0.01 or not offset


def test_padding_has_no_weight():
    logits, targets = classes()
    real = np.arange(200) < 150
    got = scores(Classification(), logits, targets, weights=real)
    alone = scores(Classification(), logits[:150], targets[:150])
    assert got["confusion"] == alone["confusion"]
    assert got["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    whole = scores(Classification(), logits, targets)
    assert got["confusion"] != whole["confusion"]
    assert got["loss"] != pytest.approx(whole["loss"], rel=1e-3)


def test_language_modeling_counts_bytes_where_they_are_known():
    sums = {"loss": np.float64(200.0), "count": np.float64(100.0)}
    task = LanguageModeling(chunk=None)
    assert task.metrics(sums, {"bytes": 400})["bits_per_byte"] == pytest.approx(2 / math.log(2) / 4)
    assert "bits_per_byte" not in task.metrics(sums, {})
    assert task.metrics(sums, {})["perplexity"] == pytest.approx(math.exp(2))


def test_every_task_is_stated_by_its_targets_and_unit():
    masked = MaskedLanguageModeling(chunk=None, share=0.15)
    made = [LanguageModeling(chunk=None), masked, Classification(), Regression()]
    assert {type(task) for task in made} == set(map(tasks.task_class, tasks.TASKS))
    assert sorted(task.targets for task in made) == ["classes", "numbers", "tokens", "tokens"]
    assert all(task.unit and hash(task) is not None for task in made)


def test_a_pooled_model_looks_at_real_tokens_alone():
    backbone = models.build("transformer", **SMALL)
    pooled = Pooled(backbone.module, classes=3, pad=0)
    tokens = np.random.default_rng(0).integers(1, 61, (2, 16), np.int32)
    tokens[:, 10:] = 0
    params = pooled.init(jax.random.key(0), tokens)
    logits = pooled.apply(params, tokens)
    assert logits.shape == (2, 3)
    longer = np.zeros((2, 16), np.int32)
    longer[:, :10] = tokens[:, :10]
    np.testing.assert_array_equal(logits, pooled.apply(params, longer))
    short = pooled.apply(params, tokens[:, :10])  # what follows the text changes nothing
    np.testing.assert_allclose(logits, short, rtol=1e-5, atol=1e-6)
    other = pooled.apply(params, np.where(longer == 0, 5, longer))
    assert np.abs(logits - other).max() > 1e-3
