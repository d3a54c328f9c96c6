"""A sweep as it runs, seen from its files: which runs are done, running, failed or waiting, how
fast they go and what is left. A table on a terminal, a line now and then where output is piped.

Nothing is asked of the workers: results, leases and the ends of metrics.jsonl tell it all, so any
shell that sees the workdir can watch, on any host.
"""

import contextlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from research.errors import BadInput, printable
from research.io.humanize import flops_text, format_duration
from research.runs import ladder, lease, metrics_log, tracking
from research.runs.settings import (
    MOST_SETTINGS,
    settings_columns,
    shown_setting,
    varying_settings,
)
from research.runs.table import read_row
from research.sweep.sweep_file import FACTS, read_sweep_file

POLL_SECONDS = 1.0  # seconds between looks at the files
PLANNED = 60.0  # seconds for which a sweep is awaited that is not planned yet
LINE_SECONDS = 10.0  # seconds between plain lines
DISPATCH = 0.02  # seconds within which the records of one dispatch are written
ENDED = ("done", "diverged", "failed")
WHY = "where or why"
WHY_LEAST, GAP = 16, 2  # cells
ORDER = ("running", "failed", "diverged", "stopped", "waiting", "done")


@dataclass(frozen=True)
class RunStatus:
    """One run as it stands. `rate` is in tokens (or examples) per second, `where` names its holder
    or says why it is not done; `settings` are those that vary over the runs; `track` compares it
    with its forecast, where it has one."""

    run: str
    facts: Mapping[str, Any]
    status: str
    step: int = 0
    loss: float | None = None
    rate: float = 0.0
    where: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    track: str = ""

    @property
    def spent(self) -> float:
        """FLOPs."""
        if self.status == "done":
            return self.facts["flops"]
        return self.facts["flops"] * min(1.0, self.step / self.facts["steps"])

    @property
    def flops_rate(self) -> float:
        return self.rate * self.facts["flops"] / self.facts["tokens"]

    @property
    def seconds_left(self) -> float | None:
        rate = self.flops_rate
        return (self.facts["flops"] - self.spent) / rate if rate else None


@dataclass(frozen=True)
class Totals:
    """All runs together, in FLOPs and FLOPs per second. What failed or diverged is not to come."""

    counts: Mapping[str, int]
    spent: float
    remaining: float
    rate: float

    @property
    def seconds_left(self) -> float | None:
        if not self.remaining:
            return 0.0
        return self.remaining / self.rate if self.rate else None


def total(rows: Iterable[RunStatus]) -> Totals:
    rows = list(rows)
    counts = {s: sum(r.status == s for r in rows) for s in ORDER}
    to_come = [r for r in rows if r.status not in ENDED]
    running = [r.flops_rate for r in to_come if r.status == "running"]
    known = [rate for rate in running if rate] or [r.flops_rate for r in rows if r.flops_rate]
    guess = sum(known) / len(known) if known else 0.0  # for one that compiles, or has just begun
    return Totals(
        {s: n for s, n in counts.items() if n},
        spent=sum(r.spent for r in rows),
        remaining=sum(r.facts["flops"] - r.spent for r in to_come),
        rate=sum(rate or guess for rate in running),
    )


class SweepMonitor:
    """The runs of `sweeps` (files that sweep.write made), read again at every look; what has ended
    is read once."""

    def __init__(self, workdir: str | Path, sweeps: Iterable[Path]):
        self.runs = Path(workdir) / "runs"
        self.facts: dict[str, Mapping[str, Any]] = {}
        configs: dict[str, Mapping[str, Any]] = {}
        for path in sweeps:
            points = read_sweep_file(path, follow=False).points
            self.facts |= {point.run: {k: point.facts[k] for k in FACTS} for point in points}
            configs |= {point.run: settings_columns(point.config) for point in points}
        known = [{**configs[run], **facts} for run, facts in self.facts.items()]
        varying = varying_settings(known, FACTS, MOST_SETTINGS)
        self.settings = {
            run: {name: shown_setting(config.get(name)) for name in varying}
            for run, config in configs.items()
        }
        self._ended: dict[str, RunStatus] = {}
        self.forecasts = ladder.read_forecasts(workdir)

    def rows(self) -> list[RunStatus]:
        out = []
        for run, facts in self.facts.items():
            status = self._ended.get(run) or self._read_status(run, facts)
            row = replace(status, settings=self.settings[run])
            # One that failed may be tried again.
            if row.status in ("done", "diverged"):
                self._ended[run] = row
            out.append(row)
        return out

    def _read_status(self, run: str, facts: Mapping[str, Any]) -> RunStatus:
        path = self.runs / run
        if not path.exists():
            return RunStatus(run, facts, "waiting")
        last = lease.read_holder(path / "lease")
        running = bool(last and last.alive) and not (path / "result.json").exists()
        metrics = metrics_log.read_tail(path)
        losses = [m for m in metrics if "train_loss" in m]
        step = metrics[-1]["step"] if metrics else 0
        loss = losses[-1]["train_loss"] if losses else None
        if running and last:
            where = f"{last.content.get('host')} {last.content.get('pid')}"
            track = tracking.track(self.forecasts.get(run), losses, facts["steps"])
            status = RunStatus(run, facts, "running", step, loss, _rate(losses), where)
            return replace(status, track=str(track or ""))
        row = read_row(path)
        if row["status"] == "unfinished":
            status = "stopped" if last else "waiting"
            return RunStatus(run, facts, status, step, loss, where=row["reason"])
        loss, seconds = row.get("loss", loss), row.get("seconds")
        rate = facts["tokens"] / seconds if row["status"] == "done" and seconds else 0.0
        return RunStatus(run, facts, row["status"], step, loss, rate, row["reason"])


def _rate(losses: list[dict[str, Any]]) -> float:
    """Tokens per second over the newest records. Those of one dispatch come at once, and the first
    dispatch compiles: its end is where counting begins."""
    if not losses:
        return 0.0
    began = losses[0]["seconds"] + DISPATCH
    first = max((m for m in losses if m["seconds"] < began), key=lambda m: m["step"])
    seconds = losses[-1]["seconds"] - first["seconds"]
    return (losses[-1]["tokens"] - first["tokens"]) / seconds if seconds > 0 else 0.0


class StatusDisplay:
    """Shows a sweep while the context is open; call `show` as often as you like."""

    def __init__(self, workdir: str | Path, *sweeps: Path):
        self.monitor = SweepMonitor(workdir, sweeps)
        self.console = Console()
        self.live = Live(console=self.console, auto_refresh=False, transient=True)
        self._next = self._next_line = 0.0
        self._last_status: dict[str, str] = {}
        self._last_line = ""

    def __enter__(self) -> "StatusDisplay":
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def progress_mark(self) -> object:
        """A value that changes when the work makes progress: runs end, checkpoints are written."""
        done = [row.run for row in self.monitor.rows() if row.status in ENDED]
        saved = [p.parent.parent.name + p.name for p in self.monitor.runs.glob("*/checkpoints/*")]
        return sorted(done), sorted(saved)

    def show(self) -> list[RunStatus] | None:
        """Look and show, unless it is too early for that; returns what was seen."""
        if time.monotonic() < self._next:
            return None
        rows = self.monitor.rows()
        self._next = time.monotonic() + POLL_SECONDS
        if self.console.is_terminal:
            self.live.start()
            self.live.update(status_table(rows, *reversed(self.console.size)), refresh=True)
        else:
            self._print_changes(rows)
        return rows

    def _print_changes(self, rows: list[RunStatus]) -> None:
        for row in rows:
            if row.status in ENDED and self._last_status.get(row.run, row.status) != row.status:
                loss = f" loss {row.loss:.4f}" if row.loss is not None else ""
                print(f"run {row.run}: {row.status}{loss} {row.where}".rstrip(), flush=True)
        self._last_status = {row.run: row.status for row in rows}
        if time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LINE_SECONDS
            if (line := format_line(rows)) != self._last_line:
                print(line, flush=True)
            self._last_line = line


def status_table(rows: list[RunStatus], height: int = 40, width: int = 120) -> Group:
    """As many runs as fit, those at work first, with what is left out counted in the last line; and
    as many columns as fit whole, but that `WHY` may be cut."""
    settings = list(rows[0].settings) if rows else []
    totals = _format_totals(total(rows))
    room = max(3, height - 3 - -(-len(totals) // width))
    shown = sorted(rows, key=lambda r: ORDER.index(r.status))[:room]
    cells = {
        "run": [row.run for row in shown],
        "params": [f"{row.facts['params']:,}" for row in shown],
        "lr": [f"{row.facts['lr']:.3g}" for row in shown],
        "seed": [str(row.facts["seed"]) for row in shown],
        "FLOPs": [flops_text(row.facts["flops"]) for row in shown],
        **{name: [printable(row.settings[name]) for row in shown] for name in settings},
        "status": [row.status for row in shown],
        "step": [f"{r.step:,}/{r.facts['steps']:,}" if r.step else "" for r in shown],
        "loss": ["" if row.loss is None else f"{row.loss:.4f}" for row in shown],
        "tokens/s": [f"{row.rate:,.0f}" if row.rate else "" for row in shown],
        "left": [_seconds_left(r.seconds_left) if r.status == "running" else "" for r in shown],
        WHY: [printable(f"{r.track}; {r.where}" if r.track else r.where) for r in shown],
    }
    for name, fact in (("lr", "lr"), ("seed", "seed"), ("FLOPs", "flops")):
        if len({row.facts[fact] for row in rows}) == 1:  # equal in all, it tells no run from others
            del cells[name]
    leaving = (
        *("lr", "tokens/s", "seed", *reversed(settings), "FLOPs", WHY, "params", "loss", "step"),
    )
    out = Table(box=None, header_style="bold", pad_edge=False)
    widths = _columns_that_fit(cells, leaving, width)
    for name, wide in widths.items():
        justify = "left" if name in ("run", "status", WHY) else "right"
        out.add_column(Text(name), width=wide, justify=justify, overflow="ellipsis", no_wrap=True)
    for i in range(len(shown)):
        out.add_row(*(Text(cells[name][i]) for name in widths))
    rest = f"; {len(rows) - room} more runs" if len(rows) > room else ""
    return Group(out, Text(totals + rest))


def _columns_that_fit(
    cells: Mapping[str, list[str]], leaving: Iterable[str], width: int
) -> dict[str, int]:
    """The columns with their widths, without the first of `leaving` for which there is no room."""
    out = {name: max(map(cell_len, (name, *column))) for name, column in cells.items()}
    longest = out.pop(WHY)
    if any(cells[WHY]):
        out[WHY] = min(longest, WHY_LEAST)

    def room() -> int:
        return width - sum(out.values()) - GAP * (len(out) - 1)

    for name in leaving:
        if room() < 0:
            out.pop(name, None)
    if WHY in out:
        out[WHY] = min(longest, out[WHY] + room())
    return out


def format_line(rows: list[RunStatus]) -> str:
    """The same in one line."""
    at = []
    for row in rows:
        if row.status == "running":
            loss = "" if row.loss is None else f" loss {row.loss:.3f}"
            rate = f" {row.rate:,.0f} tokens/s" if row.rate else ""
            track = f" {row.track}" if row.track else ""
            at.append(f"{row.run} step {row.step:,}/{row.facts['steps']:,}{loss}{rate}{track}")
    return "; ".join([_format_totals(total(rows)), *at])


def _format_totals(totals: Totals) -> str:
    counts = ", ".join(f"{n} {s}" for s, n in totals.counts.items())
    flops = f"{flops_text(totals.spent)} FLOPs spent, {flops_text(totals.remaining)} to go"
    return f"{counts}; {flops}, {_seconds_left(totals.seconds_left)} left{_end(totals)}"


def _end(totals: Totals) -> str:
    """When that is by the clock here, with the day where it is not today."""
    if not totals.seconds_left:
        return ""
    now, seconds = time.time(), totals.seconds_left
    today, then = (time.strftime("%F %H:%M", time.localtime(now + s)).split() for s in (0, seconds))
    return f", until {' '.join(then[today[0] == then[0] :])}"


def _seconds_left(seconds: float | None) -> str:
    return "?" if seconds is None else format_duration(seconds)


def _launched(workdir: str) -> list[Path]:
    return sorted((Path(workdir) / "sweeps").glob("*.json"))


def follow(workdir: str) -> int:
    """Show the sweeps of `workdir` until nothing is left to do, or Ctrl-C.

    Raises BadInput if none was launched there, nor is within the seconds that planning takes.
    """
    if not (sweeps := _launched(workdir)):
        print(f"no sweep in {workdir} yet: waiting {PLANNED:.0f} s for one that is being planned")
        end = time.monotonic() + PLANNED
        while not sweeps and time.monotonic() < end:
            time.sleep(min(POLL_SECONDS, PLANNED))
            sweeps = _launched(workdir)
    if not sweeps:
        raise BadInput(f"--watch={workdir}: no sweep was launched there; expected its --workdir")
    with StatusDisplay(workdir, *sweeps) as view, contextlib.suppress(KeyboardInterrupt):
        waiting = {row.status for row in view.monitor.rows()} - {*ENDED}
        if waiting and "running" not in waiting:
            print(
                "no run is being trained now; where no worker is starting, the same isoflop sweep "
                "command again continues"
            )
        while any(row.status not in ENDED for row in view.show() or view.monitor.rows()):
            time.sleep(POLL_SECONDS)
    print(_format_totals(total(view.monitor.rows())))
    return 0
