"""Models: pure `init` and `apply` functions over a plain nested dict of parameters.

`MODELS` lists the families; a family's module is imported on first use. It defines a dataclass of
hyperparameters (or the Linen module itself, if that suffices), SIZED, FIXABLE, SIZE_RULE and
`nth_size` (how `size` sets fields), GROUPS, SHARDING, `forward_flops`, and `solve` where the
optimum has a closed form.

A language model trained on classes gets a pooled classifier head in place of its vocabulary head.
"""

import dataclasses
import functools
import importlib
import pkgutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
from jax import Array

MODELS = {
    "transformer": "research.models.transformer:TransformerConfig",
    "encoder": "research.models.encoder:EncoderConfig",
    "gru": "research.models.gru:GRUConfig",
    "linear": "research.models.linear:Linear",
    "mlp": "research.models.mlp:MLP",
    "cnn": "research.models.cnn:CNN",
    "resnet": "research.models.resnet:ResNet",
}


@dataclass(frozen=True)
class Model:
    """`init(key, inputs) → params`, `apply(params, inputs) → outputs`.

    Language models return hidden states [B·T, D]; `unembed(params, hidden)` turns them into logits
    [B·T, V], so a task can compute its loss in chunks. With `classes`, hidden states are pooled
    into logits [B, K] instead.
    """

    spec: Any
    module: nn.Module
    classes: int | None = None

    @property
    def family(self) -> Any:
        """The module of this family: size rule, groups, sharding rules, FLOPs."""
        return sys.modules[type(self.spec).__module__]

    @property
    def groups(self) -> tuple:
        return (*self.family.GROUPS, *(pooled().POOLED_GROUPS if self.classes else ()))

    @property
    def sharding(self) -> tuple:
        return (*self.family.SHARDING, *(pooled().POOLED_SHARDING if self.classes else ()))

    def forward_flops(self) -> dict[str, int]:
        """Forward FLOPs of one example's matmuls, by part (see accounting)."""
        parts = dict(self.family.forward_flops(self.spec))
        if self.classes:
            parts["head"] = 2 * self.spec.width * self.classes
        return parts

    def described(self) -> dict[str, Any]:
        """The arguments of `build` for this model, as JSON."""
        definition = f"{type(self.spec).__module__}:{type(self.spec).__name__}"
        name = next(name for name, target in MODELS.items() if target == definition)
        own = [f.name for f in dataclasses.fields(self.spec) if f.name not in ("parent", "name")]
        fields = {field: getattr(self.spec, field) for field in own}
        pooled = {"classes": self.classes, "pad": self.module.pad} if self.classes else {}  # type: ignore[attr-defined]
        return {"name": name, **fields, **pooled}

    def init(self, key: Array, inputs: Array) -> dict:
        """Parameters in float32; each depends only on `key` and its own path."""
        return _init(self.module)(key, inputs)

    def apply(self, params: dict, inputs: Array) -> Array:
        return self.module.apply({"params": params}, inputs)  # type: ignore[return-value]

    def unembed(self, params: dict, hidden: Array) -> Array:
        return self.module.apply({"params": params}, hidden, method="unembed")  # type: ignore[return-value]

    @property
    def max_length(self) -> int | None:
        """Tokens that a cache of `init_cache` can hold; None: unlimited."""
        return self.module.max_length  # type: ignore[attr-defined]

    def init_cache(self, batch: int, length: int) -> Any:
        """The decoding state before the first token, with room for `length` tokens."""
        return self.module.apply({}, batch, length, method="init_cache")

    def decode(self, params: dict, tokens: Array, cache: Any, offset: Any) -> tuple[Array, Any]:
        """Hidden states [B·T, D] of `tokens` [B, T] at positions from `offset`, which follow those
        in `cache`; and the updated cache."""
        return self.module.apply({"params": params}, tokens, cache, offset, method="decode")  # type: ignore[return-value]

    def shapes(self, inputs: Any) -> dict:
        """Parameters as ShapeDtypeStructs, for abstract `inputs`; allocates nothing."""
        return jax.tree.map(lambda x: x, _shapes(self, inputs))


# Imported only by runs that use it.
pooled = functools.partial(importlib.import_module, "research.models.pooled_classifier")


def _everything(module: Any, inputs: Array) -> Array:
    """All that a model can be asked for, so that all its parameters are there."""
    return module.unembed(module(inputs)) if hasattr(module, "unembed") else module(inputs)


@functools.lru_cache(maxsize=64)
def _init(module: nn.Module) -> Callable[[Array, Array], dict]:
    return jax.jit(lambda key, x: module.init(key, x, method=_everything)["params"], inline=True)


@functools.lru_cache(maxsize=4096)  # a sweep asks for every size many times
def _shapes(model: Model, inputs: Any) -> dict:
    # Not `init`: by `apply`, layers need not draw what they hold.
    made = functools.partial(model.module.apply, {}, method=_everything, mutable=["params"])
    key = jax.eval_shape(jax.random.key, 0)
    return jax.eval_shape(lambda key, x: made(x, rngs={"params": key})[1]["params"], key, inputs)


def family(name: str) -> Any:
    """The module of the family `name`."""
    return importlib.import_module(MODELS[name].partition(":")[0])


def build(
    name: str, *, classes: int | None = None, pad: int | None = None, **kwargs: object
) -> Model:
    """The model of family `name` with exactly these fields.

    In a family without a field `classes`, they turn the language model into a sequence classifier
    that ignores trailing `pad` tokens. Raises ValueError or TypeError for invalid fields.
    """
    make: Any = pkgutil.resolve_name(MODELS[name])
    if any(f.name == "classes" for f in dataclasses.fields(make)):
        kwargs["classes"], classes = classes, None
    # JSON turns tuples into lists, but the fields must be hashable.
    spec = make(**{k: tuple(v) if isinstance(v, list) else v for k, v in kwargs.items()})
    module = spec if isinstance(spec, nn.Module) else spec.module()
    if classes:
        module = pooled().Pooled(module, classes, -1 if pad is None else pad)
    return Model(spec, module, classes)
