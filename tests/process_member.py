"""One of the processes that tests/test_processes.py starts: trains, restores and shows what it is
told in FILE.json, and writes down what the test compares."""

import argparse
import json
import os
from pathlib import Path

import numpy as np

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


def perform(task):
    run = make_run(task["config"])
    made = records.RunDirectory if processes.first() else records.Follower
    with made(task["workdir"], run.id) as directory:
        train.fit(run, directory)
    trainer = train.Trainer(run, sharding.make_mesh(run.mesh, run.batch))
    out = processes.fetch(trainer.batches(3, 6, 6))
    leaves, losses = restored_and_next(run, trainer, task["from"])
    out |= {"losses": losses, **{f"state/{k}": v for k, v in leaves.items()}}
    if processes.first():
        np.savez(task["out"], pid=os.getpid(), **out)


with processes.joined(gang.place(args)):
    perform(json.loads(Path(args.task).read_text()))
