"""One of the processes that tests/test_processes.py starts: trains, restores and shows what it is
told in FILE.json, and writes down what the test compares."""

import argparse
import json
import os
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from research.errors import Damaged, Lost, Preempted
from research.launch import gang

parser = argparse.ArgumentParser()
parser.add_argument("--task")
gang.add_flags(parser)
args = parser.parse_args()

from research import checkpoint, processes, records, sharding, train, trees  # noqa: E402
from research.run import make_run  # noqa: E402


def restored_and_next(run, trainer, path):
    """The state of a checkpoint, whole, and the losses of the steps after it."""
    state = checkpoint.restore(Path(path), trainer.abstract)
    whole, step = processes.fetch(state), int(processes.fetch(state.step))
    n = run.steps - step
    _, metrics = trainer.steps(state, trainer.batches(step, n, n), n)
    assert all(x.is_fully_replicated for x in metrics.values()), "each would wait for the others"
    return trees.by_path(whole), processes.fetch(metrics)["train_loss"]


def agreements():
    """What one process knows, both are told."""
    me = jax.process_index()
    told = processes.agree(lambda: {"of": me, "long": "x" * 1000})
    assert told == {"of": 0, "long": "x" * 1000}
    with pytest.raises(Damaged, match="as process 0 found it"):
        processes.agree(damaged)
    assert processes.either(me == 1)
    assert not processes.either(False)
    asked = processes.late(lambda: me == 1)
    assert [asked(), asked()] == [False, True]
    processes.meet(ValueError("both come here"))
    processes.PATIENCE = 1.0
    if me == 1:
        with pytest.raises(Lost, match="process 1 of 2 failed alone: ValueError: this one alone"):
            processes.meet(ValueError("this one alone"))
    else:
        time.sleep(3)


def damaged():
    raise Damaged("as process 0 found it")


def perform(task):
    run, longer = make_run(task["config"]), make_run(task["longer"])
    made = records.RunDirectory if processes.first() else records.Follower
    with made(task["workdir"], run.id) as directory:
        train.fit(run, directory)
    reached = []
    with made(task["workdir"], longer.id) as directory:
        stop = lambda: jax.process_index() == 1 and max(reached, default=0) >= 12  # noqa: E731
        with pytest.raises(Preempted, match="stopped and saved at step"):
            train.fit(longer, directory, lambda step, loss: reached.append(step), stop)
    trainer = train.Trainer(run, sharding.make_mesh(run.mesh, run.batch))
    out = processes.fetch(trainer.batches(3, 6, 6))
    leaves, losses = restored_and_next(run, trainer, task["from"])
    out |= {"losses": losses, **{f"state/{k}": v for k, v in leaves.items()}}
    if processes.first():
        np.savez(task["out"], pid=os.getpid(), **out)


with processes.joined(gang.place(args)):
    agreements()
    perform(json.loads(Path(args.task).read_text()))
