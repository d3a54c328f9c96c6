"""A trace of some steps by jax's profiler, for TensorBoard's profile tab or Perfetto."""

import contextlib
import logging
from pathlib import Path
from typing import Any

import jax

log = logging.getLogger(__name__)

WARM = 2  # dispatches before the traced ones: they compile, and choose how many steps are in one


class Profile:
    """Traces at least `steps` steps into `folder`, in whole dispatches, after the first WARM. Enter
    it around the loop: a run that ends before closes its trace."""

    def __init__(self, folder: Path, steps: int):
        self.folder, self.left = folder, steps
        self.dispatches, self.tracing = 0, False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_: object) -> None:
        if self.tracing:
            self._stop()
        elif self.left:
            log.warning("--profile: the run ended within its first %d dispatches, untraced", WARM)

    def step(self, step: int) -> contextlib.AbstractContextManager[Any]:
        """The context in which the dispatch that begins with `step` is sent."""
        if self.left <= 0:
            return contextlib.nullcontext()
        self.dispatches += 1
        if self.dispatches > WARM and not self.tracing:
            jax.profiler.start_trace(str(self.folder))
            self.tracing = True
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def on_dispatch(self, n: int, metrics: Any) -> None:
        """`n` steps were dispatched, and are done when their `metrics` are ready."""
        if self.tracing:
            self.left -= n
            if self.left <= 0:
                jax.block_until_ready(metrics)
                self._stop()

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self.tracing, self.left = False, 0
        log.info(
            "profile: %s (tensorboard --logdir, or its .trace.json.gz in Perfetto)", self.folder
        )
