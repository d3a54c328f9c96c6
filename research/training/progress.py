"""What a person sees of runs while they train: a live bar on a terminal, a line now and then where
output is piped."""

import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Column

EVERY = 5.0  # seconds between plain lines
WIDE = 110  # cells of a terminal, from which there is room for a rate


class Progress:
    """Runs that train one after the other; enter it to show it. FLOPs measure the way, so that the
    time left is right although the last run may cost as much as all the others."""

    def __init__(self, runs: Iterable[Mapping[str, Any]]):
        """`runs` are the facts of the runs to come: "steps", "flops", "tokens" are read."""
        runs = list(runs)
        self.count, self.index = len(runs), 0
        self.total, self.spent = sum(r["flops"] for r in runs), 0.0
        self.facts: Mapping[str, Any] = {}
        self.live, self._first = sys.stdout.isatty(), 0
        self._began = self._printed = time.monotonic()
        self._bars = Bars(
            TextColumn("{task.description} {task.percentage:3.0f}%"),
            BarColumn(bar_width=None),  # what the others leave
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            TextColumn("left  {task.fields[note]}"),
            disable=not self.live,
            transient=True,
            expand=True,
        )
        self._task = self._bars.add_task("", total=self.total, note="")

    def __enter__(self) -> "Progress":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def start_run(self, facts: Mapping[str, Any]) -> None:
        """The next run starts."""
        self.index, self.facts = self.index + 1, facts
        self._began, self._first = time.monotonic(), -1
        self._bars.update(self._task, description=self._label(), note="compiling")

    def update(self, steps: int, loss: float) -> None:
        """`steps` of the current run are done."""
        if self._first < 0:  # the first dispatch compiled, so it says nothing about the rate
            self._began, self._first = time.monotonic(), steps
        seconds = time.monotonic() - self._began
        per_step = self.facts["tokens"] / self.facts["steps"]
        spent = self.spent + self.facts["flops"] * steps / self.facts["steps"]
        note = f"step {steps:,}/{self.facts['steps']:,}, loss {loss:.3f}"
        if steps > self._first and (not self.live or self._bars.console.width >= WIDE):
            unit = "examples" if self.facts.get("context") == 1 else "tokens"
            note += f", {(steps - self._first) * per_step / seconds:,.0f} {unit}/s"
        self._bars.update(self._task, completed=spent, note=note)
        if not self.live and time.monotonic() - self._printed > EVERY:
            self._printed = time.monotonic()
            left = self._bars.tasks[0].time_remaining
            note += "" if left is None else f"; about {left:,.0f} s left"
            self.print_line(f"  {self._label()}: {note}; {spent / self.total:.0%} of all FLOPs")

    def finish_run(self, line: str) -> None:
        """The current run has ended; `line` says how."""
        self.spent += self.facts["flops"]
        self._bars.update(self._task, completed=self.spent)
        self.print_line(f"{self._label()}, seed {self.facts.get('seed', 0)}: {line}")

    def skip_run(self, facts: Mapping[str, Any]) -> None:
        """Another worker has finished a run that was still to come."""
        self.index, self.spent = self.index + 1, self.spent + facts["flops"]
        self._bars.update(self._task, completed=self.spent)

    def print_line(self, text: str) -> None:
        """A line that stays."""
        if self.live:
            self._bars.console.print(text, highlight=False, markup=False, soft_wrap=True)
        else:
            print(text, flush=True)

    def _label(self) -> str:
        return f"[{self.index}/{self.count}] {self.facts.get('params', 0):,} params"
