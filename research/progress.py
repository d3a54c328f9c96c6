"""What a person sees while runs train: a live bar on a terminal, a line now and then elsewhere."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

EVERY = 5.0  # seconds between plain lines


class Progress:
    """Steps of one run after another, out of `total`; enter it to show it."""

    def __init__(self, total: int, label: str):
        self.total, self.label, self.base, self.loss = total, label, 0, float("nan")
        self.live = sys.stdout.isatty()
        self._printed = time.monotonic()
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.3f}"),
            TimeRemainingColumn(),
            console=Console(),
            disable=not self.live,
            transient=True,
        )
        self._task = self._bars.add_task(label, total=total, loss=float("nan"))

    def __enter__(self) -> "Progress":
        self._bars.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._bars.stop()

    def begin(self, label: str, base: int) -> None:
        """The next run; `base` of the total is behind it."""
        self.label, self.base = label, base
        self._bars.update(self._task, description=label, completed=base)

    def update(self, steps: int, loss: float) -> None:
        """`steps` of the present run are done."""
        self._bars.update(self._task, completed=self.base + steps, loss=loss)
        if not self.live and time.monotonic() - self._printed > EVERY:
            self._printed = time.monotonic()
            done = self.base + steps
            self.say(f"  {self.label}: {done:,} of {self.total:,} steps, training loss {loss:.3f}")

    def say(self, text: str) -> None:
        """A line that stays."""
        if self.live:
            self._bars.console.print(text, highlight=False, markup=False)
        else:
            print(text, flush=True)
