"""One of the processes that test_processes.py starts: trains, restores and shows what it is
told in FILE.json, and writes down what the test compares."""

import argparse
import json
import os
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from research.config import process_flags
from research.errors import Damaged, Lost, Preempted

parser = argparse.ArgumentParser()
parser.add_argument("--task")
process_flags.add_flags(parser)
args = parser.parse_args()

from research.parallel import distributed, joining  # noqa: E402
from research.params import leaves_by_path  # noqa: E402
from research.runs import checkpoint, orbax_io, restoring  # noqa: E402
from research.runs.directory import ReadOnlyRunDirectory, RunDirectory  # noqa: E402
from research.training.loop import train_run  # noqa: E402
from research.training.make_run import make_run  # noqa: E402
from research.training.trainer import Trainer, run_mesh  # noqa: E402


def restored_and_next(run, trainer, path):
    """The state of a checkpoint, whole, and the losses of the steps after it."""
    state = restoring.restore(Path(path), trainer.abstract)
    whole, step = distributed.gather(state), int(distributed.gather(state.step))
    n = run.steps - step
    _, metrics = trainer.steps(state, trainer.batches(step, n, n), n)
    assert all(x.is_fully_replicated for x in metrics.values()), "each would wait for the others"
    return leaves_by_path(whole), distributed.gather(metrics)["train_loss"]


def agreements():
    """What one process knows, both are told."""
    me = jax.process_index()
    told = distributed.broadcast(lambda: {"of": me, "long": "x" * 1000})
    assert told == {"of": 0, "long": "x" * 1000}
    with pytest.raises(Damaged, match="as process 0 found it"):
        distributed.broadcast(damaged)
    assert distributed.any_process(me == 1)
    assert not distributed.any_process(False)
    asked = distributed.any_process_delayed(lambda: me == 1)
    assert [asked(), asked()] == [False, True]
    joining.barrier(ValueError("both come here"))
    joining.PATIENCE = 1.0
    if me == 1:
        with pytest.raises(Lost, match="process 1 of 2 failed alone: ValueError: this one alone"):
            joining.barrier(ValueError("this one alone"))
    else:
        time.sleep(3)


def damaged():
    raise Damaged("as process 0 found it")


def perform(task):
    run, longer = make_run(task["config"]), make_run(task["longer"])
    made = RunDirectory if distributed.is_primary() else ReadOnlyRunDirectory
    with made(task["workdir"], run.id) as directory:
        train_run(run, directory)
    reached = []
    with made(task["workdir"], longer.id) as directory:
        stop = lambda: jax.process_index() == 1 and max(reached, default=0) >= 12  # noqa: E731
        with pytest.raises(Preempted, match="stopped and saved at step"):
            train_run(longer, directory, lambda step, loss: reached.append(step), stop)
    trainer = Trainer(run, run_mesh(run))
    out = distributed.gather(trainer.batches(3, 6, 6))
    leaves, losses = restored_and_next(run, trainer, task["from"])
    out |= {"losses": losses, **{f"state/{k}": v for k, v in leaves.items()}}
    if distributed.is_primary():
        np.savez(task["out"], pid=os.getpid(), **out)


def die_in(task):
    """Train, while process 1 dies as it saves or restores what `task` names."""
    functions = {
        "write": (orbax_io, "checkpointer"),
        "digest": (checkpoint, "digest_state"),
        "restore": (restoring, "checked_tree"),
    }
    if jax.process_index() == 1:
        setattr(*functions[task["dies_in"]], lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    run = make_run(task["config"])
    if task["dies_in"] != "restore":
        made = RunDirectory if distributed.is_primary() else ReadOnlyRunDirectory
        with made(task["workdir"], run.id) as directory:
            train_run(run, directory)
    restoring.restore(Path(task["from"]), Trainer(run, run_mesh(run)).abstract)


with distributed.join_processes(process_flags.distributed_options(args)):
    content = json.loads(Path(args.task).read_text())
    if "dies_in" in content:
        die_in(content)
    else:
        agreements()
        perform(content)
