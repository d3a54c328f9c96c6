"""Masked runs end to end: resumed, on several devices, vmapped, fine-tuned; what they refuse."""

import numpy as np
import pytest

from experiments import generate as generate_command
from research.config import validation
from research.config.loading import load_config, validated
from research.errors import BadInput
from research.inference import export, generate
from research.inference.load import open_run
from research.runs import metrics_log
from research.training.make_run import make_run
from tests.config.test_configs import labeled
from tests.training.test_fine_tuning import fit
from tests.training.test_masked_language_modeling import MASKED
from tests.training.test_vmapped_runs import fit as fit_vmapped

pytestmark = pytest.mark.slow
FLAT = {"optim.schedule.name": "constant", "optim.warmup.amount": 0.0, "save.every": 4}
ONE = {"mesh.data": 1}


@pytest.fixture(scope="module")
def source(tiny, tmp_path_factory):
    """(result, directory) of a masked run on one device."""
    return fit(tiny(MASKED | FLAT | ONE), tmp_path_factory.mktemp("masked"))


def losses(path):
    return [r["train_loss"] for r in metrics_log.read_records(path) if "train_loss" in r]


def test_a_run_that_goes_on_has_the_bits_of_one_that_was_not_stopped(tiny, source, tmp_path):
    whole, _ = source
    _, parent = fit(tiny(MASKED | FLAT | ONE | {"horizon.amount": 8.0}), tmp_path / "parent")
    more = {"init.run": str(parent), "init.what": "state"}
    child, path = fit(tiny(MASKED | FLAT | ONE | more), tmp_path / "child")
    assert child["loss"] == whole["loss"]
    assert child["accuracy"] == whole["accuracy"]
    assert min(r["step"] for r in metrics_log.read_records(path) if "train_loss" in r) >= 8
    other, _ = fit(tiny(MASKED | FLAT | ONE | more | {"data.seed": 1}), tmp_path / "other")
    assert other["loss"] != whole["loss"]  # the twin: other masks


@pytest.mark.parametrize(
    "change",
    [
        {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2},
        {"batch.grad_accumulation": 4},
        {"task.chunk": 40},
    ],
    ids=["devices", "parts", "chunks"],
)
def test_how_a_run_is_computed_changes_its_last_bits_alone(change, tiny, source, tmp_path):
    result, path = fit(tiny(MASKED | FLAT | ONE | change), tmp_path)
    assert path.name == source[1].name
    assert result["loss"] == pytest.approx(source[0]["loss"], rel=1e-5)
    assert losses(path) == pytest.approx(losses(source[1]), rel=1e-5)


def test_vmapped_runs_have_the_losses_that_they_have_alone(tiny, source, tmp_path):
    changes = ({}, {"seed": 1}, {"optim.lr": 0.1})
    runs = [make_run(tiny(MASKED | FLAT | ONE | change)) for change in changes]
    results = fit_vmapped(runs, tmp_path)
    assert results[runs[0].id]["loss"] == pytest.approx(source[0]["loss"], rel=1e-5)
    different = [results[run.id]["loss"] for run in runs]
    assert min(abs(a - b) for i, a in enumerate(different) for b in different[:i]) > 1e-4


def classifier(corpus, source, **changes):
    config, _ = load_config("configs/text_masked.py")
    every = {"data.path": str(labeled(corpus)), "data.classes": 2, "data.examples": 64}
    every |= {"data.heldout": 0.25}
    every |= {"data.context": 32, "eval.examples": 32, "horizon.amount": 256.0, "batch.size": 8}
    every |= {"init.run": str(source), "size": None, "mesh.data": 1} | changes
    config, problems = validation.override(config, every)
    assert not problems, problems
    return validated(config)


def test_a_masked_model_is_fine_tuned_to_classify(tiny, corpus, tmp_path):
    shape = {"model.norm": "layer", "model.activation": "gelu", "model.bias": True}
    shape |= {"model.tie_embeddings": True}
    text = {"data.path": str(labeled(corpus)), "data.heldout": 0.25}
    _, masked = fit(tiny(MASKED | ONE | shape | text), tmp_path / "masked")
    run = make_run(classifier(corpus, masked))
    assert run.start.rule.splitlines()[0].endswith("new: classifier/bias, classifier/kernel")
    assert ("backbone/mask/embedding", "mask/embedding") in run.start.pairs
    result, path = fit(classifier(corpus, masked), tmp_path / "classes")
    for name in ("accuracy", "macro_precision", "macro_recall", "macro_f1"):
        assert 0 <= result[name] <= 1
    assert np.shape(result["confusion"]) == (2, 2)
    assert result["group"] == "encoder from lm_transformer"
    with pytest.raises(BadInput, match="no class of transformers computes this classifier"):
        export.write_hf(export.from_run(str(path)), tmp_path / "hf")


def test_a_causal_run_has_no_mask_to_start_from(tiny, tmp_path):
    _, path = fit(tiny(ONE | {"horizon.amount": 2.0}), tmp_path)
    with pytest.raises(BadInput, match=r"is a transformer, but model\.name is encoder"):
        make_run(tiny(MASKED | {"init.run": str(path)}))


def test_a_masked_model_neither_writes_text_nor_is_a_class_of_transformers(source, tmp_path):
    _, path = source
    opened = open_run(path)
    with pytest.raises(BadInput, match="this model predicts no next token"):
        generate.generate(opened.model, opened.params, [1, 2], 3)
    with pytest.raises(BadInput, match="its task is masked_language_modeling; expected"):
        generate_command.chosen(str(path))
    with pytest.raises(BadInput, match="no class of transformers computes this encoder; expected"):
        export.write_hf(export.from_run(str(path)), tmp_path / "hf")
    written = export.write(export.from_run(str(path)), tmp_path / "own")  # the twin: our own format
    assert (written / "model.safetensors").exists()
