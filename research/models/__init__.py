"""Models: two pure functions over a plain nested dict of parameters.

`MODELS` names the families. A family is one file: a dataclass of the numbers that make a member
(or the Linen module itself, where one is enough) and, beside it, what the rest of the house asks:
SIZED, SIZE_RULE and `rung` (how `size` fills fields), GROUPS, SHARDING, `forward_flops`.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
from jax import Array

from research.models import transformer

MODELS: dict[str, Callable[..., Any]] = {"transformer": transformer.Transformer}


@dataclass(frozen=True)
class Model:
    """`init(key, inputs) → params`, `apply(params, inputs) → outputs`.

    Language models return hidden states and turn them into logits with `unembed(params, hidden)`,
    so that a task may compute its loss in chunks.
    """

    spec: Any
    module: nn.Module

    @property
    def family(self) -> Any:
        """The file of this family, with its size rule, groups, sharding rules and FLOPs."""
        return sys.modules[type(self.spec).__module__]

    def init(self, key: Array, inputs: Array) -> dict:
        """All parameters, float32. A pure function of the key and the parameter's path."""

        def everything(module: nn.Module, inputs: Array) -> Array:
            outputs = module(inputs)  # type: ignore[operator]
            return module.unembed(outputs) if hasattr(module, "unembed") else outputs  # type: ignore[attr-defined]

        return self.module.init(key, inputs, method=everything)["params"]  # type: ignore[return-value]

    def apply(self, params: dict, inputs: Array) -> Array:
        return self.module.apply({"params": params}, inputs)  # type: ignore[return-value]

    def unembed(self, params: dict, hidden: Array) -> Array:
        return self.module.apply({"params": params}, hidden, method="unembed")  # type: ignore[return-value]

    def shapes(self, inputs: Any) -> dict:
        """The parameters as abstract arrays; nothing is allocated."""
        return jax.eval_shape(self.init, jax.random.key(0), inputs)


def family(name: str) -> Any:
    """The file of the family `name`."""
    return sys.modules[MODELS[name].__module__]


def build(name: str, **kwargs: object) -> Model:
    """The model `name` with exactly these fields."""
    spec = MODELS[name](**kwargs)
    return Model(spec, spec if isinstance(spec, nn.Module) else spec.module())
