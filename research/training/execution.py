"""How a run is computed, which changes its last bits at most.

It is no part of what a run means, so not of its id; but a run resumes with the execution of its
first launch, which launch.json keeps (see `other_execution`).
"""

from dataclasses import dataclass
from typing import Any

MODEL_FIELDS = ("attention", "remat", "unroll")


@dataclass(frozen=True)
class Execution:
    """`grad_accumulation`: in how many parts a step takes its batch, one after the other; `chunk`:
    tokens whose logits are in memory at once (0: all, None: by the task's rule); `attention`,
    `remat`, `unroll`: of the model. None where the task or the family has no such choice."""

    grad_accumulation: int
    chunk: int | None = None
    attention: str | None = None
    remat: str | None = None
    unroll: int | None = None

    @classmethod
    def of_parts(cls, grad_accumulation: int, task: Any, spec: Any) -> "Execution":
        """That of a task and a model as they are."""
        model = {name: getattr(spec, name, None) for name in MODEL_FIELDS}
        return cls(grad_accumulation, getattr(task, "chunk", None), **model)
