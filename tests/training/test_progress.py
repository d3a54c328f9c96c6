"""The bar of a terminal fits it, and tells how long the rest takes; so does a line of a pipe."""

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

from research.training import progress
from research.training.progress import Progress

FACTS = {"params": 143_304, "tokens": 1_165_824, "flops": 1.2e12, "steps": 122_277, "seed": 0}
CODE = """
import time
from research.training.progress import Progress
facts = {facts!r}
with Progress([facts] * 18) as progress:
    progress.start_run(facts)
    for i in range(1, 12):
        progress.update(11_000 * i, 1.573)
        time.sleep(0.1)
"""


def lines_of_a_terminal(columns):
    """What such a bar drew on a terminal of so many columns, without its control sequences."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    command = [sys.executable, "-c", CODE.format(facts=FACTS)]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs,
                          env={**environment, "TERM": "xterm"}) as child:  # fmt: skip
        os.close(theirs)
        drawn = b""
        with contextlib.suppress(OSError):  # the other end is closed
            while part := os.read(ours, 65536):
                drawn += part
    os.close(ours)
    assert child.returncode == 0, drawn
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn.decode())
    return [line for line in re.split(r"[\r\n]+", text) if "step" in line]


def test_a_bar_fits_80_columns_and_tells_when_the_last_run_ends():
    last = lines_of_a_terminal(80)[-1]
    assert len(last) <= 80
    assert re.fullmatch(
        r"\[1/18\] 143,304 params +5% \S+ \d:\d\d:\d\d left  step 121,000/122,277, loss 1.573", last
    )
    # The twin: what did not fit.
    wide = lines_of_a_terminal(140)[-1]
    assert wide.endswith(" tokens/s")
    assert len(wide) <= 140


def test_a_pipe_gets_lines_with_the_same_guess(monkeypatch, capsys):
    monkeypatch.setattr(progress, "EVERY", 0.0)
    with Progress([FACTS] * 2) as shown:
        shown.start_run(FACTS)
        for steps in (1000, 2000, 3000):
            shown.update(steps, 1.5)
    lines = capsys.readouterr().out.splitlines()
    assert "left" not in lines[0]  # of one look no rate follows
    assert "step 3,000/122,277, loss 1.500, " in lines[-1]
    assert re.search(r" tokens/s; about [\d,]+ s left; 1% of all FLOPs$", lines[-1])
