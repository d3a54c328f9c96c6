"""A checkpoint is whole or absent, damage is seen before use, and the step before it takes over."""

import hashlib
import json
import logging
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from research.errors import BadInput, Damaged, StorageError
from research.parallel import device_mesh, sharding
from research.runs import checkpoint, stored_state
from research.runs.manifest_check import find_damage, read_manifest

MESH = {"data": 2, "fsdp": 4, "tensor": 1}


def state(step):
    mesh = device_mesh.make_mesh(MESH, 8)
    w = np.random.default_rng(0).normal(size=(256, 128)).astype(np.float32) + step
    place = NamedSharding(mesh, PartitionSpec("fsdp"))
    return {"step": jnp.int32(step), "params": {"w": {"kernel": jax.device_put(w, place)}}}


def abstract(mesh_sizes=MESH, dtype=None):
    mesh = device_mesh.make_mesh(mesh_sizes, 8)
    place = NamedSharding(mesh, PartitionSpec("fsdp"))

    def shape(x):
        here = place if x.ndim == 2 else sharding.replicated(mesh)
        return jax.ShapeDtypeStruct(x.shape, dtype if x.ndim and dtype else x.dtype, sharding=here)

    return jax.tree.map(shape, state(0))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved")
    for step in (10, 20):
        checkpoint.save(path, step, state(step), keep=2)
    return path


@pytest.fixture
def run(saved, tmp_path):
    """A run directory with steps 10 and 20, to be damaged."""
    return shutil.copytree(saved, tmp_path / "run")


def assert_restores(run, step, sizes=MESH):
    found, restored = checkpoint.restore_latest(run, abstract(sizes))
    assert found == step
    jax.tree.map(np.testing.assert_array_equal, restored, jax.device_get(state(step)))
    return restored


def test_the_newest_step_is_restored_bitwise_where_it_belongs(run):
    restored = assert_restores(run, 20)
    assert restored["params"]["w"]["kernel"].sharding.spec == PartitionSpec("fsdp")


@pytest.mark.parametrize(
    "sizes", [{"data": 1, "fsdp": 1, "tensor": 1}, {"data": 1, "fsdp": 8, "tensor": 1}]
)
def test_it_is_restored_bitwise_onto_another_mesh(run, sizes):
    assert_restores(run, 20, sizes)


@pytest.mark.parametrize(
    "sizes", [{"data": 1, "fsdp": 1, "tensor": 1}, {"data": 1, "fsdp": 8, "tensor": 1}]
)
def test_the_digest_of_the_arrays_does_not_depend_on_the_mesh(run, tmp_path, sizes):
    placed = jax.tree.map(lambda x, to: jax.device_put(x, to.sharding), state(20), abstract(sizes))
    checkpoint.save(tmp_path, 20, placed, keep=1)
    here, there = (path / "checkpoints" / "20" for path in (tmp_path, run))
    assert stored_state.content_digest(here) == stored_state.content_digest(there)
    assert stored_state.content_digest(here) != stored_state.content_digest(there.with_name("10"))
    kernel = np.asarray(state(20)["params"]["w"]["kernel"])
    expected = hashlib.sha256(kernel.tobytes()).hexdigest()
    assert read_manifest(here)["content"]["params/w/kernel"] == expected


def test_without_a_checkpoint_nothing_is_restored(tmp_path):
    assert checkpoint.restore_latest(tmp_path, abstract()) is None


def every_file(folder):
    return sorted(p for p in folder.rglob("*") if p.is_file())


def test_every_kind_of_damage_to_every_file_is_seen(run, caplog):
    newest = run / "checkpoints" / "20"
    names = [p.relative_to(newest) for p in every_file(newest)]
    assert len(names) > 5
    damages = {
        "flipped": lambda p: p.write_bytes(flipped(p.read_bytes())),
        "emptied": lambda p: p.write_bytes(b""),
        "halved": lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]),
        "deleted": lambda p: p.unlink(),
        "linked": lambda p: (p.rename(run / "elsewhere"), p.symlink_to(run / "elsewhere")),
    }
    whole = shutil.copytree(newest, run / "whole")
    for name in names:
        for damage in damages.values():
            if not (newest / name).stat().st_size:
                continue  # an empty file can only be deleted or linked
            damage(newest / name)
            assert find_damage(newest) is not None, (name, damage)
            shutil.rmtree(newest)
            shutil.copytree(whole, newest)
    assert find_damage(newest) is None


def flipped(raw, bit=None):
    out = bytearray(raw)
    bit = len(raw) * 4 if bit is None else bit
    out[bit // 8] ^= 1 << bit % 8
    return bytes(out)


def test_two_hundred_bit_flips_are_all_detected(run):
    newest, rng = run / "checkpoints" / "20", np.random.default_rng(0)
    names = [p for p in every_file(newest) if p.stat().st_size]
    for _ in range(200):
        path = names[rng.integers(len(names))]
        raw = path.read_bytes()
        path.write_bytes(flipped(raw, int(rng.integers(len(raw) * 8))))
        assert find_damage(newest) is not None, path
        path.write_bytes(raw)
    assert find_damage(newest) is None


def test_a_damaged_step_is_quarantined_and_the_one_before_it_used(run, caplog):
    largest = max(every_file(run / "checkpoints" / "20" / "state"), key=lambda p: p.stat().st_size)
    largest.write_bytes(flipped(largest.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert_restores(run, 10)
    assert "checkpoint 20" in caplog.text
    assert (run / "quarantine" / "20").is_dir()
    assert not (run / "checkpoints" / "20").exists()


def test_orbax_alone_would_restore_the_flipped_bit(run):
    """Why the manifest is there. If this fails, orbax has learned to check its data."""
    import orbax.checkpoint as ocp

    root = (run / "checkpoints" / "20" / "state").resolve()
    data = [p for p in every_file(root) if p.parent.name == "d" and p.stat().st_size > 4096]
    if not data:
        pytest.skip("no array file to damage in this layout of orbax")
    data[0].write_bytes(flipped(data[0].read_bytes()))
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
        restored = reader.restore(root, args=ocp.args.StandardRestore(abstract()))
    assert (restored["params"]["w"]["kernel"] != state(20)["params"]["w"]["kernel"]).any()


def test_damage_to_all_steps_is_an_error_and_never_a_fresh_start(run):
    for step in ("10", "20"):
        (run / "checkpoints" / step / "manifest.json").write_text("{}")
    for _ in range(2):  # also when everything is in quarantine already
        with pytest.raises(Damaged, match="none of them is intact"):
            checkpoint.restore_latest(run, abstract())


def test_an_empty_or_half_written_step_is_not_a_step(run):
    (run / "checkpoints" / "30").mkdir()
    shutil.copytree(run / "checkpoints" / "20", run / "checkpoints" / ".saving-40")
    assert_restores(run, 20)
    assert not (run / "checkpoints" / ".saving-40").exists()


def test_old_steps_are_deleted(run):
    checkpoint.save(run, 30, state(30), keep=2)
    assert sorted(os.listdir(run / "checkpoints")) == ["20", "30"]


def test_saving_a_step_again_replaces_it(run):
    checkpoint.save(run, 20, state(20), keep=2)
    assert_restores(run, 20)


def test_another_dtype_or_shape_is_rejected_by_name(run):
    with pytest.raises(BadInput, match=r"params/w/kernel: holds .*float32.* expected .*bfloat16"):
        checkpoint.restore_latest(run, abstract(dtype=jnp.bfloat16))


def test_a_disk_that_refuses_leaves_the_older_steps(run, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.files, "write_json", full)
    with pytest.raises(StorageError, match="No space left"):
        checkpoint.save(run, 30, state(30), keep=2)
    monkeypatch.undo()
    assert_restores(run, 20)
    assert sorted(os.listdir(run / "checkpoints")) == ["10", "20"]


def test_the_manifest_lists_leaves_and_files(run):
    manifest = json.loads((run / "checkpoints" / "20" / "manifest.json").read_text())
    assert manifest["leaves"]["params/w/kernel"] == [[256, 128], "float32"]
    assert manifest["step"] == 20


LONG = """FAILED_PRECONDITION: Error writing "step/0" in OCDBT at "{0}": Error writing "{0}":
Failed to open "{0}": Read-only file system [os_error_code='30']; {1}"""


@pytest.mark.parametrize(("error", "words"), [
    (ValueError(LONG.format("/some/where" * 9, "more\n" * 900)), "Read-only file system"),
    (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
    (ValueError("x" * 5000), "x" * 300),
])  # fmt: skip
def test_what_the_disk_refuses_is_told_in_a_line(error, words, tmp_path):
    with (
        pytest.raises(StorageError) as raised,
        checkpoint.writing(tmp_path / ".saving-7-ab", 7, lambda: None),
    ):
        raise error
    assert str(raised.value) == f"{tmp_path}/7: the checkpoint cannot be written: {words}"


@pytest.mark.parametrize("primary", [True, False])
def test_of_several_processes_the_first_alone_deletes_checkpoints(primary, run, monkeypatch):
    """Each would else find that another has just deleted what it listed, and the run would end."""
    monkeypatch.setattr(checkpoint.distributed, "is_primary", lambda: primary)
    checkpoint.prune(run, keep=1)
    assert checkpoint.saved_steps(run) == ([20] if primary else [20, 10])
