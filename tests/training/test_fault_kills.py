"""Processes that are killed, stopped, hung or started twice lose nothing and believe nothing."""

import math
import random
import signal
import subprocess
import sys
import threading
import time
from collections import deque

import pytest

from research.errors import IO_ERROR
from research.runs import checkpoint, metrics_log, stored_state
from research.runs.directory import RunDirectory
from research.runs.manifest_check import find_damage
from research.training import watchdog
from research.training.loop import train_run
from research.training.make_run import make_run
from tests.faulting import metrics_of, saved_bits


def killed_at_random(victim, tmp_path, trials, rng):
    """Launch and SIGKILL `trials` times, a quarter of them at a random moment of the start, the
    others of the training; when a run has ended before, begin anew. How many kills found steps
    saved, and how many runs ended."""
    workdir, saved, ended = tmp_path / "0", 0, 0
    whole = (victim.whole / "metrics.jsonl").stat().st_size
    for trial in range(trials):
        metrics = victim.path(workdir) / "metrics.jsonl"
        before = metrics.stat().st_size if metrics.exists() else 0
        child = victim.start(workdir)
        if trial % 4:  # when so many bytes were recorded, and a little later
            size = before + rng.uniform(0, 1) * whole
            child.until(lambda m=metrics, size=size: m.exists() and m.stat().st_size > size)
        end = time.monotonic() + rng.uniform(0, 0.05 if trial % 4 else 1.5)
        child.until(lambda end=end: time.monotonic() > end)
        child.signal(signal.SIGKILL)
        code = child.wait()
        if victim.path(workdir).exists():
            saved += victim.assert_sound(workdir) > 0
        if code == 0:
            victim.assert_ends_whole(workdir)  # which finds that there is nothing to do
            ended += 1
            workdir = tmp_path / str(ended)
    victim.assert_ends_whole(workdir)
    return saved, ended


@pytest.mark.fault(
    "R1",
    "SIGKILL at any moment",
    "every listed step whole, each record once, the end bit for bit that of the undisturbed run",
    "SIGKILL in a start, or when a seeded number of bytes was recorded, again and again",
)
@pytest.mark.parametrize("trials", [4, pytest.param(100, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_at_random_ends_as_an_undisturbed_one(trials, victim, tmp_path, seen):
    saved, ended = killed_at_random(victim, tmp_path, trials, random.Random(trials))
    assert saved
    seen(trials, f"{trials} of {trials} sound; {saved} with steps saved, {ended} runs ended")


SAVER = """
import os, signal, sys, threading, time
import numpy as np
import orbax.checkpoint
from pathlib import Path
from research.runs import checkpoint

def state(step):
    kernel = np.full((64, 64), step, np.float32)
    return {"step": np.int32(step), "params": {"w": {"kernel": kernel}}}

def killed_at(point):
    '''Kill this process before its operation `point`, of those that change what survives.'''
    count = 0
    def counted(real):
        def call(*args, **kwargs):
            nonlocal count
            count += 1
            if count == point:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)
        return call
    for name in ("fsync", "rename", "replace", "unlink", "rmdir"):
        setattr(os, name, counted(getattr(os, name)))

def save(folder, step, point, delay):
    if point:
        killed_at(point)
    else:
        kill = lambda: (time.sleep(delay), os.kill(os.getpid(), signal.SIGKILL))
        threading.Thread(target=kill, daemon=True).start()
    checkpoint.save(Path(folder), step, state(step), keep=2)

for line in sys.stdin:
    folder, step, point, delay = line.split()
    pid = os.fork()
    if not pid:
        try:
            save(folder, int(step), int(point), float(delay))
        finally:
            os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def saver():
    """A function: (folder, step, point, delay) -> exit code of a process that saves `step` there
    and is killed at its operation `point`, or, if that is 0, after `delay` seconds."""
    argv = [sys.executable, "-c", SAVER]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(argv, **pipes) as process:

        def save(folder, step, point=0, delay=60.0):
            print(folder, step, point, delay, file=process.stdin, flush=True)
            return int(process.stdout.readline())

        yield save
        process.stdin.close()


def assert_whole(folder, newest):
    """All listed steps hold what they should, the newest is one of `newest`, and a start leaves
    nothing half-made."""
    for step in checkpoint.saved_steps(folder):
        path = folder / "checkpoints" / str(step)
        assert find_damage(path) is None, path
        assert (stored_state.read_arrays(path, "params")["w"]["kernel"] == step).all()
    found = checkpoint.latest_common_step([folder])
    assert found in newest
    assert not [p for p in (folder / "checkpoints").iterdir() if p.name.startswith(".")]
    return found


@pytest.mark.fault(
    "R2",
    "SIGKILL while a checkpoint is written or an old one deleted",
    "all listed steps whole, the newest the old or the new one, nothing left after the next start",
    "killed before each fsync, rename, unlink and rmdir of a save, and at random times of one",
)
@pytest.mark.parametrize(("every", "delays"), [(9, 3), pytest.param(1, 20, marks=pytest.mark.slow)])
def test_a_save_that_is_killed_anywhere_leaves_whole_steps(every, delays, saver, tmp_path, seen):
    for step in (1, 2):
        assert saver(tmp_path / "old", step) == 0
    rng, codes, found = random.Random(0), [], []

    def trial(point, delay=60.0):
        folder = tmp_path / f"{len(codes)}"
        subprocess.run(["cp", "-r", tmp_path / "old", folder], check=True)
        codes.append(saver(folder, 3, point, delay))
        found.append(assert_whole(folder, (2, 3)))
        return codes[-1]

    for _ in range(delays):
        trial(0, rng.uniform(0, 0.12))
    point = 1
    while trial(point):  # until there are no more operations
        point += every
    killed = sum(code == -signal.SIGKILL for code in codes)
    assert killed > 30 // every
    assert {2, 3} <= set(found[delays:-1])
    seen(killed, f"{killed} of {killed} whole; {found.count(2)} at the old step")


PHASES = {
    "start": ("", lambda run: True),
    "training": ("", lambda run: (run / "checkpoints" / "30").exists()),
    "evaluation": (
        """
import jax, jax.numpy as jnp
from research.training import trainer
real = trainer.eval_program
def slow(recipe, mesh):
    program, loop = real(recipe, mesh), lambda i, x: jnp.sin(x)
    wait = jax.jit(lambda x: jax.lax.fori_loop(0, 20_000, loop, x))
    def run(params, *held):
        print("evaluating", flush=True)
        with jax.transfer_guard("allow"):
            zero = 0 * wait(jnp.ones(100_000)).sum()
            return jax.tree.map(lambda x: x + jax.device_get(0.0) + zero, program(params, *held))
    return run
trainer.eval_program = slow
""",
        None,
    ),
    "data wait": (
        """
import time
from research.training import trainer
real = trainer.host_batches
def slow(run, step, *rest):
    if step == 40:
        print("waiting", flush=True)
        time.sleep(3)
    return real(run, step, *rest)
trainer.host_batches = slow
""",
        None,
    ),
}


@pytest.mark.fault(
    "R3",
    "SIGTERM at any phase",
    "the step finished and saved, exit code 75; the run continues to the same bits",
    "SIGTERM at the start, in training, in a long evaluation, while the data are waited for",
)
@pytest.mark.parametrize(
    "phase",
    [
        "training",
        *(pytest.param(p, marks=pytest.mark.slow) for p in ("start", "data wait", "evaluation")),
    ],
)
def test_a_run_that_is_asked_to_stop_saves_whatever_it_does(phase, victim, tmp_path, seen):
    before, ready = PHASES[phase]
    child, run = victim.start(tmp_path, before), victim.path(tmp_path)
    if phase == "start":
        time.sleep(0.7)
    else:
        words = {"evaluation": "evaluating", "data wait": "waiting"}.get(phase)
        assert child.until(lambda: words in child.said if words else ready(run)), child.said
    began = time.monotonic()
    child.signal(signal.SIGTERM)
    code = child.wait()
    took = time.monotonic() - began
    assert code == 75, child.said
    saved = victim.assert_sound(tmp_path)
    least = {"start": 5, "training": 30, "evaluation": 25, "data wait": 45}[phase]
    assert saved >= least
    assert took < 20, "it waited for the evaluation"
    victim.assert_ends_whole(tmp_path)
    seen(1, f"in {phase}: saved at step {saved}, {took:.1f} s after the signal")


OTHERS = {
    "a lost terminal": "SIGHUP",
    "the limit of CPU time": "SIGXCPU",
    "a timer": "SIGALRM",
    "a warning of a scheduler": "SIGUSR2",
}


def signalled(victim, tmp_path, number, *before):
    """A run that has saved step 20 and was then sent a signal."""
    child, run = victim.start(tmp_path, *before), victim.path(tmp_path)
    assert child.until(lambda: (run / "checkpoints" / "20").exists()), child.said
    child.signal(number)
    return child


@pytest.mark.fault(
    "R3",
    "a lost terminal or connection, a limit of CPU time, a timer, a warning of a scheduler",
    "as SIGTERM, exit code 75; SIGXCPU, which is repeated, never ends the process at once",
    "SIGHUP, SIGXCPU, SIGALRM, SIGUSR2 in training",
)
@pytest.mark.slow  # one handler serves these, SIGTERM and SIGINT, of which others tell
@pytest.mark.parametrize("why", OTHERS)
def test_whatever_asks_a_run_to_end_saves_it(why, victim, tmp_path, seen):
    child = signalled(victim, tmp_path, signal.Signals[OTHERS[why]])
    assert child.wait() == 75, child.said
    assert "stopped and saved at step" in child.said
    saved = victim.assert_sound(tmp_path)
    assert saved > 20
    victim.assert_ends_whole(tmp_path)
    seen(1, f"{OTHERS[why]}: saved at step {saved}")


@pytest.mark.slow
def test_a_repeated_limit_of_cpu_time_leaves_time_to_save(victim, tmp_path):
    child = victim.start(tmp_path, PHASES["data wait"][0])
    assert child.until(lambda: "waiting" in child.said), child.said
    for seconds in (0, 2.2):
        time.sleep(seconds)
        child.signal(signal.SIGXCPU)
    assert child.wait() == 75, child.said
    assert victim.assert_sound(tmp_path) >= 45


@pytest.mark.slow
def test_a_run_started_by_nohup_does_not_hear_that_the_terminal_is_lost(victim, tmp_path):
    ignores = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    child = signalled(victim, tmp_path, signal.SIGHUP, ignores)
    assert child.wait() == 0, child.said
    victim.assert_ends_whole(tmp_path)


@pytest.mark.fault(
    "R3",
    "nobody reads the output (`| head`)",
    "the run goes on without, to the same bits, exit code 0 and no traceback",
    "the reading end of the pipe of stdout and stderr closed before the first line",
)
def test_a_run_whose_output_nobody_reads_goes_on(victim, tmp_path, seen):
    closed = "import os; a, b = os.pipe(); os.dup2(b, 1); os.dup2(b, 2); os.close(a); os.close(b)"
    child = victim.start(tmp_path, closed)
    assert child.wait() == 0, child.said
    assert child.said == ""
    victim.assert_ends_whole(tmp_path)
    seen(1, "the end as undisturbed")


@pytest.mark.fault(
    "R3",
    "Ctrl-C",
    "as SIGTERM, with exit code 130",
    "SIGINT in training",
)
def test_a_run_that_is_interrupted_saves(victim, tmp_path, seen):
    child = signalled(victim, tmp_path, signal.SIGINT)
    assert child.wait() == 130, child.said
    assert "launch the same command again to resume" in child.said
    saved = victim.assert_sound(tmp_path)
    assert saved > 20
    victim.assert_ends_whole(tmp_path)
    seen(1, f"saved at step {saved}")


@pytest.mark.fault(
    "R3",
    "a second SIGTERM",
    "the process ends at once, by the signal; nothing saved is harmed",
    "two signals more than two seconds apart to a run whose data never come",
)
@pytest.mark.slow
def test_a_second_signal_ends_at_once_what_cannot_stop(victim, tmp_path, seen):
    stuck = PHASES["data wait"][0].replace("sleep(3)", "sleep(600)")
    child = victim.start(tmp_path, stuck)
    assert child.until(lambda: "waiting" in child.said)
    child.signal(signal.SIGTERM)
    time.sleep(0.2)
    child.signal(signal.SIGTERM)  # an echo of the first
    time.sleep(2.2)
    assert not child.ended()
    child.signal(signal.SIGTERM)
    assert child.wait() == -signal.SIGTERM
    assert victim.assert_sound(tmp_path) == 40
    seen(1, "the echo changed nothing, the second ended it")


@pytest.mark.fault(
    "R9",
    "one run launched eight times at once",
    "exactly one trains; the others end with code 74, naming the holder if its lease is written",
    "eight processes of the same command",
)
@pytest.mark.slow
def test_of_eight_launches_at_once_one_trains(victim, tmp_path, seen):
    go = tmp_path / "go"
    children = [victim.start(tmp_path, HELD.format(go=str(go))) for _ in range(8)]
    end = time.monotonic() + 60
    while sum(child.ended() for child in children) < 7:
        assert time.monotonic() < end, children[0].said
        time.sleep(0.05)
    go.touch()
    codes = {child.pid: child.wait() for child in children}
    assert sorted(codes.values()) == [0] + [74] * 7, children[0].said
    winner = next(pid for pid, code in codes.items() if code == 0)
    # One that came in the instant of the taking may not know its name yet.
    refused = "another process is training this run: "
    assert children[0].said.count(refused) == 7
    named = children[0].said.count(f"{refused}process {winner} on")
    assert named
    assert victim.assert_sound(tmp_path) == victim.run.steps
    assert metrics_of(victim.path(tmp_path)) == victim.metrics
    seen(8, f"one trained; seven were refused, of which {named} named its process")


HELD = """
import os, time
from research.training import trainer as train
real = train.host_batches
def slow(run, step, *rest):
    while step == 40 and not os.path.exists({go!r}):
        time.sleep(0.05)
    return real(run, step, *rest)
train.host_batches = slow
"""

SOON = ["--config.loop.hang_seconds=1.5"]
HUNG = """
import time
from research.training import trainer, watchdog
watchdog.TIMES, watchdog.POLL = 1, 0.1
real = trainer.host_batches
def stuck_for_ever(run, step, *rest):
    if step == 60:
        time.sleep(600)
    return real(run, step, *rest)
trainer.host_batches = stuck_for_ever
"""


@pytest.mark.fault(
    "R21",
    "a hang",
    "no step for max(60 s, 10 x the median): stacks dumped, exit code 77; the run continues",
    "the data of a step never come; `loop.hang_seconds` is 1.5",
)
def test_a_run_that_hangs_dumps_its_stacks_and_ends(victim, tmp_path, seen):
    child = victim.start(tmp_path, HUNG, flags=SOON)
    assert child.wait() == 77, child.said
    assert "no end of a dispatch" in child.said
    assert "in stuck_for_ever" in child.said
    assert victim.assert_sound(tmp_path) == 60
    victim.assert_ends_whole(tmp_path)
    seen(1, "exit code 77 with the stack of what hung; the next launch ended the run")


@pytest.mark.fault(
    "R21",
    "a process that is stopped for longer than the limit",
    "it is not taken for one that hangs",
    "SIGSTOP for twice the limit, then SIGCONT",
)
@pytest.mark.slow
def test_a_process_that_slept_did_not_hang(victim, tmp_path, seen):
    child = victim.start(tmp_path, HUNG.replace("600", "0"), flags=SOON)
    assert child.until(lambda: victim.path(tmp_path).joinpath("checkpoints/10").exists())
    child.signal(signal.SIGSTOP)
    time.sleep(3)
    child.signal(signal.SIGCONT)
    assert child.wait() == 0, child.said
    assert victim.assert_sound(tmp_path) == victim.run.steps
    seen(1, "continued to its end")


FINAL = """
import os, signal
from research.training import trainer as train
real = train.Trainer.evaluate
def evaluate(self, params, *rest):
    if os.path.exists({last!r}):
        {act}
    return real(self, params, *rest)
train.Trainer.evaluate = evaluate
"""


def test_another_run_may_compile_again(tiny, tmp_path):
    """What the last run took says nothing of a larger one, whose first dispatch compiles."""
    run = make_run(tiny({"loop.hang_seconds": 70.0, "loop.hang_first_seconds": None}))
    with watchdog.watching(), RunDirectory(tmp_path, run.id) as directory:
        dog = watchdog._active
        dog.past["dispatch"].extend([0.01] * 5)
        dog.least = 60.0
        assert dog.limit("dispatch") == 60.0
        dog.past["dispatch"].extend([9.0] * 9)
        assert dog.limit("dispatch") == 90.0
        dog.past["dispatch"].append(0.01)
        train_run(run, directory)
        assert 0.01 not in dog.past["dispatch"]
        assert dog.past.keys() >= {"start", "dispatch", "evaluation", "checkpoint"}
        dog.past["dispatch"].clear()
        assert dog.limit("dispatch") == math.inf, "none watches nothing"
        dog.past["dispatch"].append(0.01)
        assert dog.limit("dispatch") == 70.0
        watchdog.start_run((60.0, 3600.0))
        assert dog.limit("dispatch") == 3600.0


def test_only_the_watched_time_of_the_work_itself_counts(monkeypatch):
    barked = threading.Event()
    monkeypatch.setattr(watchdog, "_exit_hung", lambda *_: barked.set())
    monkeypatch.setattr(watchdog, "POLL", 0.01)
    monkeypatch.setattr(watchdog, "TIMES", 1)
    with watchdog.watching():
        watchdog._active.least = 1.0
        watchdog._active.past |= {"work": deque([0.0]), "all of it": deque([0.0])}
        with watchdog.doing("all of it"):  # whose own time the work in it is not
            for _ in range(5):
                with watchdog.doing("work"):
                    time.sleep(0.3)
        time.sleep(1.5)  # of nothing
        assert not barked.is_set()
        with watchdog.doing("work"):
            assert barked.wait(20), "the twin: one that lasts"


@pytest.mark.fault(
    "R23",
    "the final evaluation is interrupted",
    "the final checkpoint is there before; the next launch only evaluates",
    "an error, and SIGKILL, in the final evaluation",
)
@pytest.mark.parametrize(
    "act",
    [
        "os.kill(os.getpid(), signal.SIGKILL)",
        pytest.param("raise MemoryError", marks=pytest.mark.slow),
    ],
)
def test_the_final_checkpoint_comes_before_the_final_evaluation(act, victim, tmp_path, seen):
    run = victim.path(tmp_path)
    last = run / "checkpoints" / str(victim.run.steps)
    child = victim.start(tmp_path, FINAL.format(last=str(last), act=act))
    assert child.wait() in (IO_ERROR, -signal.SIGKILL)
    assert victim.assert_sound(tmp_path) == victim.run.steps
    assert not (run / "result.json").exists()
    victim.assert_ends_whole(tmp_path)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == len(metrics_log.read_records(run)) + 2, "a step was taken again"
    assert saved_bits(run, victim.abstract, 1)
    seen(1, "saved at the last step; the next launch took no step")
