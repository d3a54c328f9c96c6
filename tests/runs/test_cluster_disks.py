"""File systems as clusters have them: without locks, without a sync of directories."""

import errno
import fcntl
import os
import stat

import numpy as np
import pytest

from research.data import token_files, tokenizers
from research.errors import Held, StorageError
from research.io import files
from research.runs.directory import RunDirectory

NO_LOCKS = {"ENOLCK": errno.ENOLCK, "ENOSYS": errno.ENOSYS, "EOPNOTSUPP": errno.EOPNOTSUPP}
NO_SYNC = {"EINVAL": errno.EINVAL, "ENOTSUP": errno.ENOTSUP}


@pytest.fixture
def locks_fail(monkeypatch):
    """A function: from now on every flock fails with this error."""
    files._report_no_locks.cache_clear()

    def begin(number):
        def refused(*_):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "flock", refused)

    return begin


@pytest.fixture
def syncs_fail(monkeypatch):
    """A function: from now on fsync of directories, or of files, fails with this error."""
    real = os.fsync

    def begin(number, of=stat.S_ISDIR):
        def refused(descriptor):
            if of(os.fstat(descriptor).st_mode):
                raise OSError(number, os.strerror(number))
            real(descriptor)

        monkeypatch.setattr(os, "fsync", refused)

    return begin


@pytest.mark.fault(
    "R6",
    "a file system without locks",
    "the lease alone decides who writes, and a warning names the folder",
    "flock fails with ENOLCK, ENOSYS, EOPNOTSUPP",
)
@pytest.mark.parametrize("number", NO_LOCKS.values(), ids=NO_LOCKS)
def test_without_locks_the_lease_decides(tmp_path, locks_fail, caplog, number):
    locks_fail(number)
    with RunDirectory(tmp_path, "r0") as run:
        run.append(step=1, loss=2.0)
        with pytest.raises(Held, match=f"process {os.getpid()} on"):
            RunDirectory(tmp_path, "r0").__enter__()
    with RunDirectory(tmp_path, "r0") as run:
        run.write("launch.json", {})
    told = [r.getMessage() for r in caplog.records if "no locks" in r.getMessage()]
    assert told == [
        f"{tmp_path / 'runs' / 'r0'}: the file system has no locks ({os.strerror(number)}); "
        "continuing without"
    ], "once for a folder"


def test_a_lock_that_another_holds_or_that_the_disk_fails_is_no_missing_lock(tmp_path, locks_fail):
    with open(tmp_path / "lock", "w") as mine, open(tmp_path / "lock", "w") as other:
        files.lock(mine)
        with pytest.raises(BlockingIOError):
            files.lock(other, wait=False)
    locks_fail(errno.EIO)
    with pytest.raises(StorageError, match=r"runs/r0/\.lock: cannot be locked: Input/output error"):
        RunDirectory(tmp_path, "r0").__enter__()


@pytest.mark.parametrize("number", NO_LOCKS.values(), ids=NO_LOCKS)
def test_without_locks_token_ids_are_stored_once(tmp_path, locks_fail, monkeypatch, caplog, number):
    monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path))
    locks_fail(number)
    documents = [(False, b"some text"), (True, b"other text")]
    words = tokenizers.from_json("bytes")
    first = token_files.store("key", words, documents)

    def beaten(_):
        yield documents[0]
        token_files.store("late", words, documents)
        yield documents[1]

    assert token_files.store("late", words, beaten(0)).digest == first.digest
    real = os.rename

    def overtaken(source, target):  # another writer is done between the look and the rename
        token_files.shutil.copytree(source, target)
        real(source, target)

    monkeypatch.setattr(os, "rename", overtaken)
    last = token_files.store("third", words, documents)
    assert np.array_equal(last.train, first.train)
    assert f"{tmp_path / 'tokens'}: the file system has no locks" in caplog.text
    assert not list((tmp_path / "tokens").glob(".building-*"))


@pytest.mark.fault(
    "R6",
    "a file system that syncs no directories",
    "what is written is written; a file that cannot be synced is refused as before",
    "fsync of a directory, or of a file, fails with EINVAL, ENOTSUP",
)
@pytest.mark.parametrize("number", NO_SYNC.values(), ids=NO_SYNC)
def test_a_directory_that_cannot_be_synced_was_made_all_the_same(tmp_path, syncs_fail, number):
    syncs_fail(number)
    with RunDirectory(tmp_path / "new", "r0") as run:
        run.write("launch.json", {"a": 1})
        run.append(step=1, loss=2.0)
        run.sync()
    assert files.read_json(run.path / "launch.json") == {"a": 1}
    files.sync_tree(run.path)


@pytest.mark.parametrize("number", NO_SYNC.values(), ids=NO_SYNC)
def test_a_file_that_cannot_be_synced_is_an_error(tmp_path, syncs_fail, number):
    syncs_fail(number, of=stat.S_ISREG)
    with pytest.raises(StorageError, match="cannot be written"):
        files.write_json(tmp_path / "a.json", {})
    (tmp_path / "b").touch()
    with pytest.raises(OSError, match=os.strerror(number)):
        files.sync_tree(tmp_path)


def test_a_directory_whose_sync_fails_otherwise_is_an_error(tmp_path, syncs_fail):
    syncs_fail(errno.EIO)
    with pytest.raises(StorageError, match="cannot be made: Input/output error"):
        files.make_directory(tmp_path / "a")
