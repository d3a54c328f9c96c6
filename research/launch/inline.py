"""The launching process itself, as the only worker."""

from research.errors import BadInput
from research.launch.job import Job


def run(job: Job) -> list[int]:
    """Do the work here. Raises BadInput if more than one worker is asked for."""
    if job.workers not in (None, 1):
        raise BadInput(f"--workers: {job.workers}, but inline is one; expected --executor=local")
    return [job.here()]
