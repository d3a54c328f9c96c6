"""Checkpoints that orbax writes while training goes on.

The loop waits for a copy of the state on the host alone. orbax writes it, and then a thread commits
it as checkpoint.save does: digests, manifest, sync, lease, name; so a step that is listed is as
whole as any other, and what was being written when the process died is removed by the next launch.
(orbax's own callback comes before its files have their names.) One is written at a time. The last
one, one before a stop and one that is the best are waited for.
"""

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from research.errors import IsoflopError
from research.runs import checkpoint, orbax_io
from research.training import watchdog
from research.training.checkpoint_policy import (
    CheckpointPolicy,
    check_finite,
    tolerate_refused_save,
)
from research.training.step import TrainState

log = logging.getLogger(__name__)


class Write(NamedTuple):
    """What is being written: where, of which step, since when, and that it has its name."""

    temporary: Path
    step: int
    began: float
    committed: Future[None]


class AsynchronousCheckpoints(CheckpointPolicy):
    """As CheckpointPolicy, of a run of one process."""

    def __init__(self, *of_policy: Any):
        super().__init__(*of_policy)
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # what it met is raised here
        self.writer = orbax_io.orbax().AsyncCheckpointer(
            orbax_io.orbax().StandardCheckpointHandler()
        )
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        self.current: Write | None = None

    def save(self, step: int, state: TrainState, must: bool = True) -> None:
        check_finite(step, state)
        directory, recorder = self.directory, self.recorder
        with tolerate_refused_save(self.trainer.run, must=False):
            self.wait()  # for the one before, which did not have to succeed
        directory.sync()
        with tolerate_refused_save(self.trainer.run, must):
            best = recorder.improved(step)
            self._begin(step, state, {*self.kept_steps, *([step] if best else [])})
            if must or best:
                self.wait()
            recorder.saved(step)
        self.last = time.monotonic()

    def wait(self) -> None:
        """Wait for what is being written. Raises StorageError."""
        if self.current is None:
            return
        write, self.current = self.current, None
        try:
            with watchdog.doing("checkpoint write", write.began), self._writing(write):
                write.committed.result()
        finally:
            checkpoint.remove_unfinished(write.temporary)

    def close(self) -> None:
        try:
            self.wait()
        except IsoflopError as error:  # of a run that ends for another reason
            log.warning("%s", error)
        self.thread.shutdown()
        self.writer.close()

    def _begin(self, step: int, state: TrainState, pinned: set[int]) -> None:
        path, check = self.directory.path, self.directory.check_lease
        if not (temporary := checkpoint.begin(path, step)):
            return
        # A copy: the next step is written over the arrays, which may lie where the host sees them.
        copy = jax.tree.map(lambda x: np.array(x, copy=True), state)

        def commit() -> None:
            self.writer.wait_until_finished()
            checkpoint.commit(temporary, step, copy, check)
            checkpoint.prune(path, self.saving.keep, pinned)

        write = Write(temporary, step, time.monotonic(), Future())
        try:
            with self._writing(write):
                what = orbax_io.orbax().args.StandardSave(copy)
                self.writer.save(temporary / "state", args=what)
        except IsoflopError:
            checkpoint.remove_unfinished(temporary)
            raise
        self.current = write._replace(committed=self.thread.submit(commit))

    def _writing(self, write: Write) -> AbstractContextManager[None]:
        return checkpoint.writing(write.temporary, write.step, self.directory.check_lease)
