"""Where the states of a run are kept and found again, and what is not kept."""

import contextlib
import logging
import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from research.errors import Diverged, Held, StorageError
from research.parallel import distributed
from research.params import all_finite
from research.runs import checkpoint, metrics_log
from research.training import shared_prefix
from research.training.recorder import Recorder
from research.training.run import Run, Saving
from research.training.shared_prefix import SharedPrefix
from research.training.step import TrainState

log = logging.getLogger(__name__)


class DueSaves:
    """When a state is saved: after `kept_steps`, every so many steps, and by time."""

    def __init__(self, saving: Saving, kept_steps: Collection[int] = ()):
        self.saving, self.kept_steps = saving, {*kept_steps, *saving.at}
        self.last = time.monotonic()
        self._late = distributed.any_process_delayed(self._is_late)

    def due(self, step: int) -> bool:
        """Whether it is time to save the state after `step`."""
        every, minutes = self.saving.every, self.saving.every_minutes
        late = minutes is not None and self._late()
        return late or (every > 0 and step % every == 0)

    def close(self) -> None:
        """Nothing is saved any more."""

    def _is_late(self) -> bool:
        """Once for each time that it is, since several processes hear of it a call later."""
        assert self.saving.every_minutes is not None
        late = time.monotonic() - self.last > 60 * self.saving.every_minutes
        if late:
            self.last = time.monotonic()
        return late


class CheckpointPolicy(DueSaves):
    """Where the states of a run are kept and found again. It keeps those after `kept_steps` beyond
    `keep`, and where it has none of its own it begins from one of `prefixes`."""

    def __init__(
        self,
        trainer: Any,
        recorder: Recorder,
        prefixes: Sequence[SharedPrefix] = (),
        kept_steps: Collection[int] = (),
    ):
        super().__init__(trainer.run.saving, kept_steps)
        self.trainer, self.recorder, self.prefixes = trainer, recorder, prefixes
        self.directory = recorder.directory

    def restore(self) -> tuple[int, TrainState]:
        """The step and state to resume from."""
        abstract = self.trainer.abstract
        restored = checkpoint.restore_latest(self.directory.path, abstract)
        if restored:
            log.info("run %s resumes from step %d", self.trainer.run.id, restored[0])
        elif self.prefixes:
            from research.training.wsd_branching import start_from_prefix  # which few runs need

            shown = self.recorder.shown.log
            restored = start_from_prefix(self.directory, self.prefixes, abstract, shown)
        else:
            distributed.broadcast(lambda: shared_prefix.forget(self.directory))
        self._warn_if_inconsistent(restored)
        if restored is None:
            state = self.trainer.init()
            restored = int(state.step), state  # not 0 where it is another run's state
        self.recorder.record_start(restored[0])
        return restored

    def _warn_if_inconsistent(self, restored: tuple[int, TrainState] | None) -> None:
        """Warn if the records do not match the checkpoints."""
        path = self.directory.path
        if restored and restored[0] and not (path / "metrics.jsonl").exists():
            log.warning("%s: the records of the steps before %d are gone", path, restored[0])
        elif restored is None and any(r["step"] for r in metrics_log.read_tail(path)):
            log.warning("%s: has records of steps, and no checkpoint: from the start", path)

    def save(self, step: int, state: TrainState, must: bool = True) -> None:
        """Save a state that is finite, or raise Diverged. If the disk refuses one that `must` not
        be saved, the run may continue without."""
        check_finite(step, state)
        run, directory, recorder = self.trainer.run, self.directory, self.recorder
        directory.sync()
        with tolerate_refused_save(run, must):
            pinned = {*self.kept_steps, *([step] if recorder.improved(step) else [])}
            check, keep = directory.check_lease, self.saving.keep
            checkpoint.save(directory.path, step, state, keep, check, pinned)
            recorder.saved(step)
        self.last = time.monotonic()


def check_finite(step: int, state: TrainState) -> None:
    """Raise Diverged if a number of `state` is not finite, though no loss was yet."""
    if distributed.any_process(not all_finite(state)):
        raise Diverged(f"the state after step {step - 1} is not finite; the loss before it was")


@contextlib.contextmanager
def tolerate_refused_save(run: Run, must: bool) -> Iterator[None]:
    """A checkpoint that the disk refuses ends the run, or, if `save.on_error` is "continue" and not
    `must`, is logged."""
    try:
        yield
    except Held:
        raise
    except StorageError as error:
        if must or run.saving.on_error == "stop":
            raise
        log.warning("%s; run %s continues without it", error, run.id)
