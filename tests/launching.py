"""Small sweeps launched as commands, for the tests that need real processes."""

import os
import signal
import subprocess
import sys
import time

from research.runs import lease

SWEEP = """
from configs import lm_transformer

def get_config():
    config = lm_transformer.get_config()
    config.size = None
    config.model.update(width=16, depth=2, heads=2, kv_heads=2, hidden=32)
    config.data.update(context=32, path={corpus!r})
    config.batch.size = 8
    config.horizon.update(unit="steps", amount={steps})
    config.eval.update(examples=16, batch=8, every=0)
    config.save.every = 10
    config.log.every = 1
    return config

def sweep(config):
    return [{{"model.width": w, "seed": s}} for w in {widths} for s in range({seeds})]
"""


def sweep_file(path, corpus, steps=20.0, widths=(16, 24), seeds=3):
    path.write_text(SWEEP.format(corpus=str(corpus), steps=steps, widths=widths, seeds=seeds))
    return path


def command(config, workdir, *flags):
    argv = [sys.executable, "-m", "experiments.sweep", f"--config={config}"]
    return [*argv, f"--workdir={workdir}", *flags]


def clean_environment():
    return {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}


def start(*argv):
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command(*argv), env=clean_environment(), **streams)


def wait_for_output(process):
    """(exit code, output), once it has ended."""
    out, _ = process.communicate(timeout=300)
    return process.returncode, out


def launch_counts(workdir):
    """How often each run was begun."""
    return {
        path.parent.name: path.read_text().count('"resume"')
        for path in workdir.glob("runs/*/metrics.jsonl")
    }


def runs_with_checkpoint(workdir, steps):
    """The runs that have a checkpoint of at least `steps`; older ones are cleared away."""
    every = workdir.glob("runs/*/checkpoints/*")
    return {path.parents[1] for path in every if path.name.isdigit() and int(path.name) >= steps}


def wait_for(condition, process, seconds=300):
    """Until the condition holds; fails with what the process said if it ends before."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, wait_for_output(process)[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def kill_lease_holder(workdir, process):
    """SIGKILL a worker that has a run open and has saved some of it; returns the run."""
    killed = []

    def kill():
        for run in runs_with_checkpoint(workdir, 20):
            last = lease.read_holder(run / "lease")
            if last and last.alive:
                os.kill(last.content["pid"], signal.SIGKILL)
                killed.append(run.name)
                return True
        return False

    wait_for(kill, process)
    return killed[0]
