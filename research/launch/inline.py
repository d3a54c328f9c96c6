"""The launching process itself, as the only worker; or its children, which are one together."""

from dataclasses import replace

from research.errors import BadInput
from research.launch import local
from research.launch.job import Job


def run(job: Job) -> list[int]:
    """Do the work here; of several processes, start them all and watch. Raises BadInput if more
    than one worker is asked for."""
    if job.workers not in (None, 1):
        raise BadInput(f"--workers: {job.workers}, but inline is one; expected --executor=local")
    return [job.here()] if job.processes == 1 else local.run(replace(job, workers=1))
