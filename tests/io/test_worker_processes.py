"""Jobs in other processes: the same results and errors, whatever becomes of a process."""

import functools
import os
import subprocess
import sys
import time

import pytest

from research.errors import BadInput
from research.io.worker_processes import run_jobs

HERE = os.getpid()


def square(x, seconds=0.0):
    time.sleep(seconds)
    return x * x, os.getpid()


def refuse(x):
    raise BadInput(f"{x} is wrong", "and more")


def die_elsewhere(x, parent):
    if os.getpid() != parent:
        os._exit(3)
    return square(x, 0.3)


def squares(count, seconds=0.0):
    return [functools.partial(square, x, seconds) for x in range(count)]


@pytest.mark.parametrize("most", [0, 1, 2])
def test_results_are_in_the_order_of_the_jobs(most):
    results = run_jobs(squares(8, 0.3), most)
    assert [value for value, _ in results] == [x * x for x in range(8)]
    assert len({process for _, process in results}) == most + 1


def test_one_job_needs_no_other_process():
    assert run_jobs(squares(1), 2) == [(0, HERE)]
    assert run_jobs([], 2) == []


def test_an_error_is_that_of_the_job_alone():
    jobs = [*squares(4, 0.3), functools.partial(refuse, 5), functools.partial(refuse, 6)]
    with pytest.raises(BadInput) as error:
        run_jobs(jobs, 1)
    assert error.value.problems in {("5 is wrong", "and more"), ("6 is wrong", "and more")}


def test_a_job_whose_process_dies_is_done_here():
    jobs = [functools.partial(die_elsewhere, x, HERE) for x in range(4)]
    assert run_jobs(jobs, 1) == [(x * x, HERE) for x in range(4)]


def test_a_script_without_a_guard_is_not_run_again():
    script = (
        "import functools, math\n"
        "from research.io.worker_processes import run_jobs\n"
        "print(run_jobs([functools.partial(math.sqrt, x) for x in (4, 9, 16)], 2))\n"
    )
    done = subprocess.run([sys.executable, "-"], input=script, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[2.0, 3.0, 4.0]\n", "")
