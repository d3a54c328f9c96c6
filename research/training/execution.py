"""How a run is computed, which changes its last bits at most.

It is no part of what a run means, so not of its id; but a run resumes with the execution of its
first launch, which launch.json keeps.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

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

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Execution":
        """What `vars` of one gave. Raises ValueError for anything else."""
        names = [field.name for field in dataclasses.fields(cls)]
        if unknown := [key for key in stored if key not in names]:
            raise ValueError(f"{unknown[0]!r:.50} is not one of {', '.join(names)}")
        if "grad_accumulation" not in stored:
            raise ValueError("grad_accumulation is missing")
        return cls(**stored)

    def check(self, batch: int, task: Any, spec: Any) -> None:
        """Raise ValueError where a batch, task or model cannot be computed so."""
        _check_count("grad_accumulation", self.grad_accumulation, 1)
        if batch % self.grad_accumulation:
            raise ValueError(
                f"grad_accumulation: {self.grad_accumulation} does not divide a batch of {batch}"
            )
        if self.chunk is not None:
            _check_count("chunk", self.chunk, 0)
            _check_has(task, "chunk")
        hints = type(spec).__annotations__
        for name in MODEL_FIELDS:
            value = getattr(self, name)
            if value is None and name not in hints:
                continue
            _check_has(spec, name)
            if get_origin(hints[name]) is Literal:
                if value not in get_args(hints[name]):
                    expected = ", ".join(get_args(hints[name]))
                    raise ValueError(f"{name}: {value!r:.50}; expected one of {expected}")
            else:
                _check_count(name, value, 1)

    @property
    def of_model(self) -> dict[str, Any]:
        """The fields of the model that it decides."""
        return {k: getattr(self, k) for k in MODEL_FIELDS if getattr(self, k) is not None}

    def differences(self, other: "Execution") -> str:
        """What `other` has otherwise, in words; "" where nothing."""
        pairs = zip(vars(other).items(), vars(self).values(), strict=True)
        return ", ".join(f"{key} {value}" for (key, value), own in pairs if value != own)


def _check_count(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**31:
        raise ValueError(f"{name}: {value!r:.50}; expected a whole number of at least {least}")


def _check_has(owner: Any, name: str) -> None:
    if not hasattr(owner, name):
        raise ValueError(f"{name}: {type(owner).__name__} has no such choice")
