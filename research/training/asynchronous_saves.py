"""Checkpoints that orbax writes while training goes on.

The loop waits for a copy of the state on the host alone. A thread of orbax writes it, and then
commits it as checkpoint.save does: digests, manifest, sync, lease, name; so a step that is listed
is as whole as any other, and what was being written when the process died is removed by the next
launch. One is written at a time. The last one, one before a stop and one that is the best are
waited for.
"""

import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from research.errors import StorageError
from research.runs import checkpoint, orbax_io
from research.training import watchdog
from research.training.checkpoint_policy import (
    CheckpointPolicy,
    check_finite,
    tolerate_refused_save,
)
from research.training.step import TrainState

log = logging.getLogger(__name__)


class AsynchronousCheckpoints(CheckpointPolicy):
    """As CheckpointPolicy, of a run of one process."""

    def __init__(self, *of_policy: Any):
        super().__init__(*of_policy)
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # what it met is raised here
        ocp = orbax_io.orbax()
        options = ocp.options.AsyncOptions(post_finalization_callback=self._commit)
        handler = ocp.StandardCheckpointHandler()
        self.writer = ocp.AsyncCheckpointer(handler, async_options=options)
        self.current: tuple[Path, int, float] | None = None  # temporary, step, when it began
        self.finish: Callable[[], None] = lambda: None

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
        (temporary, step, began), self.current = self.current, None
        try:
            with watchdog.doing("checkpoint write", began), self._writing(temporary, step):
                self.writer.wait_until_finished()
        finally:
            checkpoint.remove_unfinished(temporary)

    def close(self) -> None:
        try:
            self.wait()
        except StorageError as error:  # of a run that ends for another reason
            log.warning("%s", error)
        with contextlib.suppress(Exception):
            self.writer.close()

    def _begin(self, step: int, state: TrainState, pinned: set[int]) -> None:
        path, check = self.directory.path, self.directory.check_lease
        if not (temporary := checkpoint.begin(path, step)):
            return
        # A copy: the next step is written over the arrays, which may lie where the host sees them.
        copy = jax.tree.map(lambda x: np.array(x, copy=True), state)

        def finish() -> None:
            checkpoint.commit(temporary, step, copy, check)
            checkpoint.prune(path, self.saving.keep, pinned)

        self.finish, self.current = finish, (temporary, step, time.monotonic())
        with self._writing(temporary, step):
            what = orbax_io.orbax().args.StandardSave(copy)
            self.writer.save(temporary / "state", args=what)

    def _commit(self) -> None:
        """Called by the thread that wrote, once all arrays are written."""
        self.finish()

    def _writing(self, temporary: Path, step: int) -> Any:
        return checkpoint.writing(temporary, step, self.directory.check_lease)
