"""Real processes to injure, and what is asked of a run afterwards."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

from research.io import files
from research.parallel import device_mesh
from research.params import leaves_by_path
from research.runs import checkpoint, metrics_log, restoring
from research.runs.manifest_check import find_damage
from research.training.make_run import make_run
from research.training.trainer import Trainer

DEVICES = 2
SMALL_MACHINE = os.environ | {"JAX_NUM_CPU_DEVICES": str(DEVICES)}
ROOT = Path(__file__).parents[1]


def kill_until_done(argv, metrics, kills, rng):
    """Launch, SIGKILL at a random moment after the first new record, `kills` times; then finish."""
    for _ in range(kills):
        size = metrics.stat().st_size if metrics.exists() else 0
        process = subprocess.Popen(argv, env=SMALL_MACHINE, stdout=subprocess.DEVNULL)
        try:
            while process.poll() is None and (
                not metrics.exists() or metrics.stat().st_size <= size + 40
            ):
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.5))
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    subprocess.run(argv, env=SMALL_MACHINE, check=True, stdout=subprocess.DEVNULL)


class Zygote:
    """Starts commands quickly (see tests/zygote.py); with `devices` simulated devices."""

    def __init__(self, devices: int = DEVICES, before=()):
        self.process = subprocess.Popen(
            [*before, sys.executable, "-m", "tests.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)},
            cwd=ROOT,
        )
        self.threads = json.loads(self.process.stdout.readline())["threads"]

    def ask(self, **asked):
        print(json.dumps(asked), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def start(self, config, workdir, before="", module="experiments.train", flags=()):
        workdir.mkdir(exist_ok=True)
        log = workdir / "log"
        log.touch()
        argv = [f"--config={config}", f"--workdir={workdir}", *flags]
        return Child(self, self.ask(module=module, argv=argv, log=str(log), before=before), log)

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


class Child:
    def __init__(self, zygote, pid, log):
        self.zygote, self.pid, self.log = zygote, pid, log

    def signal(self, number):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def ended(self):
        """Whether it has ended (and waits to be asked how)."""
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"

    def wait(self):
        return self.zygote.ask(wait=self.pid)

    @property
    def said(self):
        return self.log.read_text()

    def until(self, condition, seconds=60):
        """Wait until it holds; whether it does, or the process has ended before."""
        end = time.monotonic() + seconds
        while not condition():
            if self.ended():
                return condition()
            assert time.monotonic() < end, self.said
            time.sleep(0.002)
        return True


def metrics_of(run):
    """All records but the clock."""
    return [{k: v for k, v in r.items() if k != "seconds"} for r in metrics_log.read_records(run)]


def abstract_of(config, sizes=None):
    """The state of a run, laid out over DEVICES of the devices of this process."""
    run = make_run(config)
    mesh = device_mesh.make_mesh(sizes or {"data": DEVICES, "fsdp": 1, "tensor": 1}, run.batch)
    return Trainer(run, mesh).abstract


def bits(state):
    """A digest of all arrays of a state."""
    arrays = sorted(leaves_by_path(jax.device_get(state)).items())
    return files.digest(
        *(part for k, x in arrays for part in (k.encode(), np.asarray(x).tobytes()))
    )


def saved_bits(run, abstract, steps=None):
    """{step: digest of its arrays} of the steps that are listed, each of which must be intact."""
    listed = checkpoint.saved_steps(run)
    for step in listed:
        assert find_damage(run / "checkpoints" / str(step)) is None, step
    chosen = listed if steps is None else listed[:steps]
    return {k: bits(restoring.restore(run / "checkpoints" / str(k), abstract)) for k in chosen}


class Victim:
    """A run to be injured: its config, and its states and records where nobody injures it."""

    def __init__(self, zygote, config, keeping, folder):
        """`keeping` is the same config that keeps all its checkpoints."""
        self.zygote, self.config = zygote, config
        self.run, self.abstract = make_run(config), abstract_of(config)
        self.file = folder / "config.json"
        self.file.write_text(json.dumps(config))
        (folder / "keeping.json").write_text(json.dumps(keeping))
        child = zygote.start(folder / "keeping.json", folder / "whole")
        assert child.wait() == 0, child.said
        self.whole = self.path(folder / "whole")
        self.bits, self.metrics = saved_bits(self.whole, self.abstract), metrics_of(self.whole)
        assert len(self.bits) == 24

    def path(self, workdir):
        return workdir / "runs" / self.run.id

    def start(self, workdir, before="", **more):
        return self.zygote.start(more.pop("config", self.file), workdir, before, **more)

    def killed_after(self, workdir, step, before=""):
        """The directory of a run whose process was killed when it had saved `step`."""
        child, run = self.start(workdir, before), self.path(workdir)
        child.until(lambda: (run / "checkpoints" / str(step)).exists())
        child.signal(signal.SIGKILL)
        child.wait()
        return run

    def assert_sound(self, workdir, steps=1):
        """Every step that is listed is whole, the newest hold what they should, and of the records
        before it each is there once; what was begun may lie beside it."""
        run = self.path(workdir)
        found = saved_bits(run, self.abstract, steps)
        assert found == {k: self.bits[k] for k in found}
        newest = max(found, default=0)
        got = metrics_of(run)
        assert got == self.metrics[: len(got)]
        assert [m for m in got if m["step"] < newest] == [
            m for m in self.metrics if m["step"] < newest
        ]
        return newest

    def assert_ends_whole(self, workdir, **more):
        """Launched again it ends as if nothing had happened, and leaves nothing behind."""
        child = self.start(workdir, **more)
        assert child.wait() == 0, child.said
        assert self.assert_sound(workdir) == self.run.steps
        assert metrics_of(self.path(workdir)) == self.metrics
        self.assert_clean(workdir)

    def assert_clean(self, workdir):
        names = [p.name for p in self.path(workdir).rglob(".*")]
        left = [n for n in names if n.startswith((".saving", ".deleting")) or n.endswith(".tmp")]
        assert not left
