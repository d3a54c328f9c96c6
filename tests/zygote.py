"""Starts our commands as forks of one process that has imported everything: in a fraction of a
second each, so that hundreds of them can be killed. Nothing is computed in the parent, so a child
begins as a fresh process does.

One JSON document a line: {"module", "argv", "log", "before"} starts a command, of which `before` is
code that is executed first, and answers its process id; {"wait": pid} answers its exit code.
"""

import contextlib
import importlib
import json
import os
import signal
import sys


def main() -> None:
    for name in (
        "research.training.trainer",
        "experiments.train",
        "experiments.worker",
        "research.sweep.worker",
    ):
        importlib.import_module(name)
    importlib.import_module("orbax.checkpoint")
    print(json.dumps({"threads": len(os.listdir("/proc/self/task"))}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            answer = os.waitstatus_to_exitcode(os.waitpid(asked["wait"], 0)[1])
        elif not (answer := os.fork()):
            child(**asked)
        print(json.dumps(answer), flush=True)


def child(module: str, argv: list[str], log: str, before: str = "") -> None:
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, to in ((nothing, 0), (out, 1), (out, 2)):
        os.dup2(descriptor, to)
    sys.stdin = os.fdopen(0)
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", buffering=1)
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w", buffering=1)
    from research.config import cli

    sys.argv = [module, *argv]
    code = 1
    try:
        exec(compile(before, "before", "exec"), {})  # noqa: S102
        cli.run(importlib.import_module(module).main)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
