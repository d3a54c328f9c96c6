"""What one run writes while it trains, whoever trains it: alone, or one of a group."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from jax import Array

from research.errors import Diverged
from research.io import source
from research.parallel import distributed, jax_settings
from research.runs import checkpoint, metrics_log, schema, trackers
from research.runs.directory import CONTINUED, RunDirectory, write_data_card
from research.training import ancestry, resume, shared_prefix
from research.training.run import Run

OnSteps = Callable[[int, float], None]  # steps done, train loss
SKIPS = 20  # steps skipped in a row after which a run counts as diverged


class DeferredMetrics:
    """Takes the metrics of dispatches and writes them one dispatch late, which also bounds how many
    are in flight. `dispatch` is how many steps the loop puts into one."""

    def __init__(self) -> None:
        self.dispatch = 0
        self._pending: tuple[int, int, dict] | None = None

    def push(self, step: int, n: int, metrics: dict[str, Array]) -> None:
        """Take the metrics of a dispatch just sent; wait for the one before it."""
        pending, self._pending = self._pending, (step, n, metrics)
        if pending:
            self.write(*pending[:2], distributed.gather(pending[2]))

    def settle(self) -> None:
        """Wait for all that was sent. Raises Diverged."""
        pending, self._pending = self._pending, None
        if pending:
            self.write(*pending[:2], distributed.gather(pending[2]))

    def write(self, first: int, n: int, metrics: Mapping[str, Any]) -> None:
        """Record the metrics, on the host, of the steps [first, first + n)."""
        raise NotImplementedError


class Recorder(DeferredMetrics):
    """Writes the records of a run, and notices when it diverges.

    `directory` must be held; one that only follows is not written. `launch` is what else
    launch.json says; `on_steps(steps, train_loss)` is called after each dispatch. The seconds of a
    run that is one of `members` trained at once are its share of theirs.
    """

    def __init__(
        self,
        run: Run,
        directory: RunDirectory,
        on_steps: OnSteps,
        launch: Mapping[str, Any],
        members: int = 1,
    ):
        super().__init__()
        self.run, self.directory, self.on_steps = run, directory, on_steps
        self.metrics = schema.declaration(run.columns)
        stored = directory.write_once("config.json", run.config)
        resume.check_stored(directory.path / "config.json", stored, run)
        self.made_by = jax_settings.describe()
        known = {"facts": run.facts, **self.made_by, "model": run.model.described()}
        known |= {"trained_on": ancestry.record(run, directory), **directory.labels}
        begun = checkpoint.saved_steps(directory.path)  # else nothing decides the last bits yet
        (directory.write_once if begun else directory.write)("launch.json", {**launch, **known})
        if directory.writes:
            source.write(directory.workdir)
        if run.data.tokenizer:
            directory.write_text_once("tokenizer.json", run.data.tokenizer)
        name, place = f"{run.facts['name']} {run.id}", (directory.path, directory.workdir)
        shown = run.trackers if directory.writes else ()
        self.shown = trackers.open_trackers(shown, run.id, name, run.config, *place)
        self.before = metrics_log.read_seconds(directory.path)
        self.started, self.members = time.monotonic(), members
        self.loss, self.reached, self.best = math.nan, 0, None
        if (metric := run.saving.best) is not None:
            from research.runs.best import Best  # which few runs need

            self.best = Best(directory, metric, run.columns)
        self._continued = directory.path / CONTINUED
        self.skips, self._skipped = 0, 0  # in all; in a row

    @property
    def seconds(self) -> float:
        """Spent on this run, by earlier launches too."""
        return self.before + (time.monotonic() - self.started) / self.members

    def record_start(self, step: int) -> None:
        """Steps from `step` on are done, perhaps again."""
        self.reached = step
        self.directory.append(resume=step)
        if self.best:
            self.best.resume(step)
        if self.directory.writes and (step or self._continued.exists()):
            from research.runs import made_by  # which a new run does not need

            made_by.record(self.directory, step, self.made_by)

    def evaluation(self, step: int, metrics: Mapping[str, Any]) -> None:
        if not math.isfinite(metrics["loss"]):
            raise Diverged(f"held-out loss {metrics['loss']} after step {step}")
        logged = ("loss", *(column.name for column in self.run.columns))
        self._append(step, **{k: float(metrics[k]) for k in logged if k in metrics})
        if self.best:
            self.best.evaluated(step, metrics)

    def improved(self, step: int) -> bool:
        """Whether the evaluation of the state after `step` was the best, so that it is saved."""
        return bool(self.best and self.best.found and self.best.found[0] == step)

    def saved(self, step: int) -> None:
        """The state after `step` is saved."""
        if self.best:
            self.best.saved(step)

    def write(self, first: int, n: int, metrics: Mapping[str, Any]) -> None:
        for i in range(n):
            self.reached = first + i + 1
            values = {k: float(v[i]) for k, v in metrics.items()}
            self._check_divergence(first + i, values)
            if (first + i) % self.run.cadence.log == 0:
                self._append(first + i, **values)
        self.on_steps(first + n, self.loss)

    def _check_divergence(self, step: int, values: Mapping[str, float]) -> None:
        """Raise Diverged if a step was neither finite nor skipped, as a few in a row may be."""
        loss, norm = values["train_loss"], values["grad_norm"]
        skipped = bool(values.get("skipped"))
        self._skipped = self._skipped + 1 if skipped else 0
        self.skips = int(values.get("skips", 0))
        finite = math.isfinite(loss) and math.isfinite(norm)
        if not (finite or skipped) or self._skipped > SKIPS:
            row = f"; the last {self._skipped} steps were skipped" if skipped else ""
            raise Diverged(
                f"loss {loss}, gradient norm {norm} at step {step}{row}; "
                f"the last finite loss was {self.loss:.4g}"
            )
        if not skipped:
            self.loss = loss

    def finish(self, status: str, reason: str, devices: int, **metrics: object) -> dict[str, Any]:
        """Write the result; from now on the run is done, or has diverged."""
        seconds = round(self.seconds, 3)
        result = {
            "status": status,
            "reason": reason,
            **self.run.facts,
            **metrics,
            "metrics": self.metrics,
            **(self.best.summary() if self.best else {}),
            **shared_prefix.spent_costs(self.run, self.directory, self.reached),
            "steps_per_dispatch": self.dispatch,
            **({"skipped_steps": self.skips} if self.run.hyper.skip is not None else {}),
            "train_loss": self.loss if math.isfinite(self.loss) else None,
            "seconds": seconds,
            "device_seconds": round(seconds * devices, 3),
            "devices": devices,
            "data_digest": self.run.data.digest,
            **self.made_by,
            **self.directory.labels,
        }
        if self._continued.exists():
            from research.runs import made_by

            result |= made_by.summary(self.directory.path)
        if self.directory.writes:  # now: counting the data may take longer than a first step
            write_data_card(self.directory.workdir, self.run.data.digest, self.run.data.card)
        self.directory.write_result(result)
        self.shown.close(result)
        return result

    def _append(self, step: int, **values: float) -> None:
        tokens = step * self.run.tokens_per_step
        seconds = round(self.seconds, 3)
        values = {k: v for k, v in values.items() if math.isfinite(v)}  # of a step that was skipped
        self.directory.append(step=step, tokens=tokens, **values, seconds=seconds)
        self.shown.log(step, values)
