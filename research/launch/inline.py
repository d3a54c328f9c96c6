"""The launching process itself is the only worker; or a group of its children is."""

from dataclasses import replace

from research.errors import BadInput
from research.launch import local
from research.launch.job import Job


def run(job: Job) -> list[int]:
    """Do the work here, or start the processes of the one worker and watch them. Raises BadInput if
    more than one worker is asked for."""
    if job.workers not in (None, 1):
        raise BadInput(f"--workers: {job.workers}, but inline is one; expected --executor=local")
    return [job.run_inline()] if job.num_processes == 1 else local.run(replace(job, workers=1))
