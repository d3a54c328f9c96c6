"""Models: two pure functions over a plain nested dict of parameters.

`MODELS` names the families; the file of one is imported when it is first used. It holds the family
whole: a dataclass of the numbers that make a member (or the Linen module itself, where one is
enough) and, beside it, SIZED, FIXABLE, SIZE_RULE and `rung` (how `size` fills fields), GROUPS,
SHARDING, `forward_flops`; `solve` where the best parameters are known in closed form.

A language model whose data have classes instead of next tokens gets a classifier head in place of
the one over its vocabulary; this is the same for all of them.
"""

import dataclasses
import functools
import importlib
import pkgutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
from jax import Array

MODELS = {
    "transformer": "research.models.transformer:Transformer",
    "gru": "research.models.gru:GRU",
    "linear": "research.models.linear:Linear",
    "mlp": "research.models.mlp:MLP",
    "cnn": "research.models.cnn:CNN",
    "resnet": "research.models.resnet:ResNet",
}


@dataclass(frozen=True)
class Model:
    """`init(key, inputs) → params`, `apply(params, inputs) → outputs`.

    Language models return hidden states and turn them into logits with `unembed(params, hidden)`,
    so that a task may compute its loss in chunks. Where `classes` is set, a language model's
    hidden states are pooled into logits over classes instead.
    """

    spec: Any
    module: nn.Module
    classes: int | None = None

    @property
    def family(self) -> Any:
        """The file of this family, with its size rule, groups, sharding rules and FLOPs."""
        return sys.modules[type(self.spec).__module__]

    @property
    def groups(self) -> tuple:
        return (*self.family.GROUPS, *(_pooled().POOLED_GROUPS if self.classes else ()))

    @property
    def sharding(self) -> tuple:
        return (*self.family.SHARDING, *(_pooled().POOLED_SHARDING if self.classes else ()))

    def forward_flops(self) -> dict[str, int]:
        """FLOPs of the dot products of one example, by part (see accounting)."""
        parts = dict(self.family.forward_flops(self.spec))
        if self.classes:
            parts["head"] = 2 * self.spec.width * self.classes
        return parts

    def described(self) -> dict[str, Any]:
        """What `build` makes this model from, as JSON."""
        definition = f"{type(self.spec).__module__}:{type(self.spec).__name__}"
        name = next(name for name, target in MODELS.items() if target == definition)
        own = [f.name for f in dataclasses.fields(self.spec) if f.name not in ("parent", "name")]
        fields = {field: getattr(self.spec, field) for field in own}
        pooled = {"classes": self.classes, "pad": self.module.pad} if self.classes else {}  # type: ignore[attr-defined]
        return {"name": name, **fields, **pooled}

    def init(self, key: Array, inputs: Array) -> dict:
        """All parameters, float32. A pure function of the key and the parameter's path."""
        return _init(self.module)(key, inputs)

    def apply(self, params: dict, inputs: Array) -> Array:
        return self.module.apply({"params": params}, inputs)  # type: ignore[return-value]

    def unembed(self, params: dict, hidden: Array) -> Array:
        return self.module.apply({"params": params}, hidden, method="unembed")  # type: ignore[return-value]

    @property
    def limit(self) -> int | None:
        """The most tokens that a state of `start` takes up; None is without end."""
        return self.module.limit  # type: ignore[attr-defined]

    def start(self, batch: int, length: int) -> Any:
        """The state of a language model before the first token, for `length` tokens at most."""
        return self.module.apply({}, batch, length, method="start")

    def decode(self, params: dict, tokens: Array, state: Any, at: Array | int) -> tuple[Array, Any]:
        """Hidden states [B·T, D] of the tokens [B, T] at positions `at` … at + T−1, which follow
        those that `state` has taken up; and the state after them."""
        return self.module.apply({"params": params}, tokens, state, at, method="decode")  # type: ignore[return-value]

    def shapes(self, inputs: Any) -> dict:
        """The parameters as abstract arrays; nothing is allocated. `inputs` is abstract too."""
        return jax.tree.map(lambda x: x, _shapes(self, inputs))


def _pooled() -> Any:
    """The module of classifier heads, which few runs need."""
    from research.models import pooled_classifier

    return pooled_classifier


@functools.lru_cache(maxsize=64)
def _init(module: nn.Module) -> Callable[[Array, Array], dict]:
    """`init` of a module, which jax traces once for its shapes and for the program that runs it."""

    def everything(module: nn.Module, inputs: Array) -> Array:
        outputs = module(inputs)  # type: ignore[operator]
        return module.unembed(outputs) if hasattr(module, "unembed") else outputs  # type: ignore[attr-defined]

    init = functools.partial(module.init, method=everything)
    return jax.jit(lambda key, inputs: init(key, inputs)["params"], inline=True)


@functools.lru_cache(maxsize=4096)  # a sweep asks for every size many times
def _shapes(model: Model, inputs: Any) -> dict:
    return jax.eval_shape(model.init, jax.eval_shape(jax.random.key, 0), inputs)


def family(name: str) -> Any:
    """The file of the family `name`."""
    return importlib.import_module(MODELS[name].partition(":")[0])


def without_sized(name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """`fields` without those that `size` fills: SIZED, except given FIXABLE ones."""
    fixed = {k for k in getattr(family(name), "FIXABLE", ()) if fields.get(k) is not None}
    return {k: v for k, v in fields.items() if k not in set(family(name).SIZED) - fixed}


def build(
    name: str, *, classes: int | None = None, pad: int | None = None, **kwargs: object
) -> Model:
    """The model `name` with exactly these fields.

    `classes` of a family without such a field make it a classifier of token sequences, which ends
    in tokens `pad` that are not pooled.
    """
    make: Any = pkgutil.resolve_name(MODELS[name])
    if any(f.name == "classes" for f in dataclasses.fields(make)):
        kwargs["classes"], classes = classes, None
    # From JSON a shape comes as a list, and a model is hashed by its fields.
    spec = make(**{k: tuple(v) if isinstance(v, list) else v for k, v in kwargs.items()})
    module = spec if isinstance(spec, nn.Module) else spec.module()
    if classes:
        module = _pooled().Pooled(module, classes, -1 if pad is None else pad)
    return Model(spec, module, classes)
