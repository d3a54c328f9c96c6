"""Starting from another run: what is taken, what is new, what is refused; and using a run."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from research import models
from research.config import grid
from research.errors import BadInput, Damaged
from research.inference.load import open_run
from research.io.files import digested
from research.parallel import device_mesh
from research.params import leaves_by_path
from research.runs import checkpoint, metrics_log, restoring, stored_state
from research.runs.directory import RunDirectory
from research.runs.manifest_check import read_manifest
from research.training import fine_tuning
from research.training.loop import train_run
from research.training.make_run import make_run
from research.training.run import example_inputs
from research.training.trainer import Trainer

ONE = {"data": 1, "fsdp": 1, "tensor": 1}


def fit(config, workdir):
    run = make_run(config)
    with RunDirectory(workdir, run.id) as directory:
        return train_run(run, directory), directory.path


def start_of(config):
    run = make_run(config)
    return Trainer(run, device_mesh.make_mesh(ONE, run.batch)).init()


@pytest.fixture(scope="module")
def source(tiny, tmp_path_factory):
    config = tiny({"save.every": 4, "save.keep": 3})
    return fit(config, tmp_path_factory.mktemp("source"))[1]


def arrays(tree):
    return {path: np.asarray(leaf) for path, leaf in leaves_by_path(tree).items()}


def test_a_run_starts_from_the_parameters_of_another_and_from_a_new_optimizer(tiny, source):
    state = start_of(tiny({"init.run": str(source), "seed": 7}))
    there = arrays(stored_state.read_arrays(stored_state.latest_intact(source)[1], "params"))
    here = arrays(state.params)
    assert here.keys() == there.keys()
    for path, leaf in here.items():
        np.testing.assert_array_equal(leaf, there[path])
    assert int(state.step) == 0
    assert not any(np.abs(m).max() for p, m in arrays(state.opt_state).items() if "mu/" in p)
    fresh = arrays(start_of(tiny({"seed": 7})).params)
    assert any((fresh[path] != there[path]).any() for path in there)


def test_another_step_of_it_is_another_start(tiny, source):
    early, late = (make_run(tiny({"init.run": str(source), "init.step": s})) for s in (4, 12))
    assert early.id != late.id
    assert early.start.step == 4
    assert make_run(tiny({"init.run": str(source)})).id == late.id
    assert make_run(tiny()).id != late.id


def test_the_content_of_the_start_counts_and_not_its_place(tiny, source, tmp_path):
    moved = shutil.copytree(source.parent.parent, tmp_path / "moved")
    ids = {make_run(tiny({"init.run": str(p)})).id for p in (source, moved)}  # a run, a workdir
    assert len(ids) == 1


def start_digest(path, what="params", step=None):
    return fine_tuning.locate_checkpoint(str(path), step, what).digest


def test_a_parent_that_is_trained_again_has_the_same_children(tiny, source, tmp_path):
    again = fit(tiny({"save.every": 4, "save.keep": 3}), tmp_path)[1]
    files, files_again = (read_manifest(p / "checkpoints" / "12")["files"] for p in (source, again))
    assert files != files_again, "orbax writes no time any more: this test shows nothing"
    for what in ("params", "state"):
        init = {"init.what": what, "horizon.amount": 20.0}
        ids = {make_run(tiny({"init.run": str(path), **init})).id for path in (source, again)}
        assert len(ids) == 1, what


@pytest.mark.parametrize("part", ["step", "params", "opt_state"])
def test_one_bit_of_the_parent_makes_other_children(tiny, source, tmp_path, part):
    run = make_run(tiny())
    trainer = Trainer(run, device_mesh.make_mesh(ONE, run.batch))
    step, path = stored_state.latest_intact(source)
    altered = shutil.copytree(source, tmp_path / "altered")
    shutil.rmtree(altered / "checkpoints")
    state = jax.device_get(restoring.restore(path, trainer.abstract))
    checkpoint.save(altered, step, state, keep=1)
    assert start_digest(altered, "state") == start_digest(source, "state")
    shutil.rmtree(altered / "checkpoints")
    leaves, tree = jax.tree.flatten(getattr(state, part))
    leaves[-1] = np.array(leaves[-1])
    leaves[-1].reshape(-1).view(np.uint8)[0] ^= 1
    state = state._replace(**{part: jax.tree.unflatten(tree, leaves)})
    checkpoint.save(altered, step, state, keep=1)
    assert start_digest(altered, "state") != start_digest(source, "state")
    same_params = start_digest(altered) == start_digest(source)
    assert same_params == (part != "params"), "only the parameters count where only they are taken"


def test_a_manifest_without_digests_of_its_arrays_is_refused(source, tmp_path):
    forged = shutil.copytree(source, tmp_path / "forged")
    path = forged / "checkpoints" / "12" / "manifest.json"
    content = json.loads(path.read_text())
    assert stored_state.content_digest(path.parent) == start_digest(source, "state")
    del content["content"]
    path.write_text(json.dumps(digested(content)))
    for read in (read_manifest, stored_state.content_digest):
        with pytest.raises(BadInput, match="does not hold one digest for each leaf"):
            read(path.parent)


def test_arrays_that_are_not_those_of_the_manifest_are_rejected(source, tmp_path):
    forged = shutil.copytree(source, tmp_path / "forged")
    path = forged / "checkpoints" / "12" / "manifest.json"
    content = json.loads(path.read_text())
    leaf = next(leaf for leaf in content["content"] if leaf.startswith("params/"))
    stored_state.read_arrays(path.parent, "params")
    content["content"][leaf] = "0" * 64
    path.write_text(json.dumps(digested(content)))
    with pytest.raises(Damaged, match=f"{leaf} holds other values than its manifest says"):
        stored_state.read_arrays(path.parent, "params")


def test_going_on_from_the_state_equals_the_run_that_was_not_stopped(tiny, source, tmp_path):
    constant = {"optim.schedule.name": "constant", "optim.warmup.amount": 0.0}
    whole, _ = fit(tiny({"horizon.amount": 20.0, **constant}), tmp_path / "whole")
    _, parent = fit(tiny({"horizon.amount": 8.0, **constant}), tmp_path / "parent")
    more = {"init.run": str(parent), "init.what": "state", "horizon.amount": 20.0, **constant}
    child, path = fit(tiny(more), tmp_path / "child")
    assert child["loss"] == whole["loss"]
    steps = [r["step"] for r in metrics_log.read_records(path) if "train_loss" in r]
    assert min(steps) >= 8
    params_only, _ = fit(tiny({**more, "init.what": "params"}), tmp_path / "params")
    assert params_only["loss"] != whole["loss"]
    with pytest.raises(BadInput, match="20 steps end before"):
        make_run(tiny({**more, "init.run": str(path)}))


def test_a_state_goes_on_by_the_rule_of_transfer_that_it_was_made_by(tiny, source, tmp_path):
    rule = {"rule": "mup", "width": 8, "depth": None, "head_size": 4}
    moved = grid.section("optim.transfer", rule)
    _, parent = fit(tiny({**moved, "horizon.amount": 4.0}), tmp_path / "parent")
    more = {"init.what": "state", "horizon.amount": 20.0}
    for run, changes, words in (
        (source, moved, "rule mup.*, but the state of init.run is of rule none"),
        (parent, {}, "rule none, but the state of init.run is of .*rule mup"),
        (parent, {**moved, "optim.transfer.width": 4}, "width 4, but .* width 8"),
    ):
        with pytest.raises(BadInput, match=f"optim.transfer: .*{words}"):
            make_run(tiny({**changes, **more, "init.run": str(run)}))
        assert make_run(tiny({**changes, "init.run": str(run)})).start  # parameters alone
    assert make_run(tiny({**moved, **more, "init.run": str(parent)})).start.what == "state"


def test_a_classifier_takes_the_language_model_and_a_new_head(tiny, source):
    run = make_run(tiny())
    inputs = example_inputs(run.data)
    described = run.model.described()
    classifier = models.build(**described, classes=5, pad=0)
    start = fine_tuning.match_parameters(
        fine_tuning.locate_checkpoint(str(source), None, "params"), classifier, inputs
    )
    assert "new: classifier/bias, classifier/kernel" in start.rule
    taken = dict(start.pairs)
    assert taken["backbone/embed/embedding"] == "embed/embedding"
    assert not any("head" in there for there in taken.values())
    params = classifier.init(jax.random.key(1), np.zeros(inputs.shape, np.int32))
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params
    )
    made = arrays(fine_tuning.take_parameters(start, abstract, params))
    there = arrays(stored_state.read_arrays(start.path, "params"))
    before = arrays(params)
    for path, other in start.pairs:
        np.testing.assert_array_equal(made[path], there[other])
        assert (before[path] != there[other]).any() or "norm" in path
    np.testing.assert_array_equal(made["classifier/kernel"], before["classifier/kernel"])


def test_a_shape_is_that_of_the_run_and_its_parameters_are_new(tiny, source):
    sized = dict.fromkeys(("model.width", "model.depth", "model.heads", "model.kv_heads"))
    config = tiny({**sized, "model.hidden": None, "init.run": str(source), "init.what": "shape"})
    run, plain = make_run(config), make_run(tiny())
    assert run.model == plain.model
    assert run.id == plain.id  # it is the same as the run that names its fields
    assert run.start is None
    taken = make_run(config | {"init": config["init"] | {"what": "params"}})
    assert taken.model == plain.model
    assert taken.id != plain.id
    with pytest.raises(BadInput, match="is a transformer, but"):
        fine_tuning.model_shape(str(source), "mlp")


def test_a_body_that_does_not_fit_is_rejected_before_anything_is_trained(tiny, source):
    with pytest.raises(BadInput, match=r"init.run: parameter blocks/mlp.* is of shape .* in"):
        make_run(tiny({"init.run": str(source), "model.hidden": 40}))
    with pytest.raises(BadInput, match=r"blocks/attn/query/bias of shape .* is missing in"):
        make_run(tiny({"init.run": str(source), "model.bias": True}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"init.run": "nowhere"}, "nowhere: no run found; expected WORKDIR/runs/<id>"),
        ({"init.step": 3}, "init.step: 3 is given, but init.run is none"),
    ],
)
def test_a_start_that_is_not_there_is_reported(tiny, changes, words):
    with pytest.raises(BadInput, match=words):
        make_run(tiny(changes))


def test_a_step_that_is_not_there_and_a_damaged_checkpoint_are_reported(tiny, source, tmp_path):
    with pytest.raises(BadInput, match=r"no intact checkpoint of step 5; there are \[4, 8, 12\]"):
        make_run(tiny({"init.run": str(source), "init.step": 5}))
    moved = shutil.copytree(source, tmp_path / "damaged")
    victim = max((moved / "checkpoints" / "12").rglob("d/*"), key=lambda p: p.stat().st_size)
    raw = victim.read_bytes()
    victim.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    assert make_run(tiny({"init.run": str(moved)})).start.step == 8
    assert (moved / "checkpoints" / "12").is_dir()  # another run's files are not ours to move
    for step in (4, 8):
        shutil.rmtree(moved / "checkpoints" / str(step))
    with pytest.raises(BadInput, match="no intact checkpoint"):
        make_run(tiny({"init.run": str(moved)}))


def test_a_workdir_of_several_runs_asks_which(tiny, source, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(source, tmp_path / "runs" / name)
    with pytest.raises(BadInput, match="2 runs found"):
        make_run(tiny({"init.run": str(tmp_path)}))


def test_an_opened_run_computes_what_it_was_trained_to(tiny, source):
    opened = open_run(source)
    run = make_run(tiny())
    assert opened.model.spec == run.model.spec
    assert opened.tokenizer == ""
    made = Trainer(run, device_mesh.make_mesh(ONE, run.batch))
    result = json.loads((source / "result.json").read_text())
    loss = made.evaluate(jax.tree.map(jax.numpy.asarray, opened.params))["loss"]
    assert loss == pytest.approx(result["loss"], rel=1e-6)
    assert made.evaluate(made.init().params)["loss"] != pytest.approx(loss, rel=1e-3)


def test_every_model_is_built_again_from_its_description():
    inputs = jax.ShapeDtypeStruct((1, 8), np.int32)
    names = [f.name for f in dataclasses.fields(models.family("transformer").TransformerConfig)]
    model = models.build("transformer", **dict(zip(names, FIELDS)))
    again = models.build(**json.loads(json.dumps(model.described())))
    assert again == model
    classifier = models.build(**model.described(), classes=3, pad=0)
    again = models.build(**json.loads(json.dumps(classifier.described())))
    assert again == classifier != model
    assert (
        leaves_by_path(again.shapes(inputs)).keys() != leaves_by_path(model.shapes(inputs)).keys()
    )


FIELDS = (61, 16, 32, 2, 4, 4, 48, "rms", "rotary", 1e4, "swiglu", False, False, False)
FIELDS += ("float32", "own", "none", 1)


@pytest.mark.slow
def test_the_moving_average_is_what_is_evaluated_kept_and_taken(tiny, tmp_path):
    plain, without = fit(tiny(), tmp_path / "plain")
    _, kept = stored_state.latest_intact(without)
    assert not stored_state.read_arrays(kept, "average")
    averaged, path = fit(tiny({"optim.ema": 0.9}), tmp_path / "ema")
    assert averaged["loss"] != plain["loss"]
    assert averaged["train_loss"] == plain["train_loss"]  # the training itself is the same
    _, kept = stored_state.latest_intact(path)
    average, last = (arrays(stored_state.read_arrays(kept, part)) for part in ("average", "params"))
    assert any((average[p] != last[p]).any() for p in last)
    opened = arrays(open_run(path).params)
    for leaf, value in average.items():
        np.testing.assert_array_equal(opened[leaf], value)


def test_the_moving_average_is_that_of_its_definition():
    from research.training.step import _moving_average

    average, values = {"w": np.float32(1.0)}, [2.0, 3.0, -1.0]
    expected = 1.0
    for step, value in enumerate(values):
        average = _moving_average(
            average, {"w": np.float32(value)}, np.int32(step), np.float32(0.15)
        )
        keep = min(0.15, (1 + step) / (10 + step))
        expected = keep * expected + (1 - keep) * value
    assert float(average["w"]) == pytest.approx(expected, rel=1e-6)
    assert float(average["w"]) != pytest.approx(values[-1], rel=1e-3)
