"""Rules by which initialization, learning rate, weight decay and Adam's epsilon follow a model's
shape: what a config says of a small model then holds for a large one.

A family's table TRANSFER gives every parameter a role, a rule gives the role exponents of three
ratios to the base shape: m_N of the leaf's own width (its fan-in; of embeddings and vectors, their
length), m_L of the depth, m_H of the head size. At the base shape every factor is 1.

The rules multiply in the forward pass: logits by 1/m_N, residual branches by 1/m_L, attention by
sqrt(base head size) / head size. To multiply w x by a is the same function as to have the weights
w' = a w, so these are what is stored, and no model knows of any rule: whoever uses the weights, for
generation or anything else, computes what training computed. Only two places act, the initial draw
(`Transfer.initial`) and the update. The gradient of w is a times that of w', and a change of w' is
a times that of w; weight decay and epsilon are those of w.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from research import models
from research.errors import BadInput
from research.models import Model
from research.params import PathTable, key_path, leaves_by_path
from research.training.optimizers import by_table

Powers = tuple[float, float, float]  # of m_N, m_L and m_H


class Role(NamedTuple):
    """How a kind of parameter is scaled. `std` of the initialization by the rule and `drawn` as the
    family draws it; `forward` is the multiplier a; `lr`, `decay` (coupled: times the learning
    rate) and `eps` are of AdamW, `sgd_lr` and `sgd_decay` of SGD. `fan_in`: m_N is of the last but
    one axis and not of the last."""

    fan_in: bool = False
    std: Powers = (0, 0, 0)
    drawn: Powers = (0, 0, 0)
    forward: Powers = (0, 0, 0)
    lr: Powers = (0, 0, 0)
    decay: Powers = (0, 0, 0)
    eps: Powers = (0, 0, 0)
    sgd_lr: Powers = (1, 0, 0)
    sgd_decay: Powers = (-1, 0, 0)


# Dey et al. 2025, "Don't be lazy" (CompleteP), with alpha = 1, and for epsilon of input and output
# Mlodozeniec et al. 2025 (Complete(d)P); m_L = 1 is the width rule of Yang et al. 2022 (muP), whose
# table 8 gives that of SGD. Readout in the form "constant weights, logits / m_N".
_HIDDEN = Role(
    fan_in=True,
    std=(-0.5, 0, 0),
    drawn=(-0.5, 0, 0),
    lr=(-1, 0, 0),
    decay=(1, 0, 0),
    eps=(-1, -1, 0),
    sgd_lr=(0, 0, 0),
    sgd_decay=(0, 0, 0),
)
_VECTOR = Role(eps=(-1, -1, 0))
_INPUT = Role(eps=(-1, 0, 0))
_EMBEDDING = _INPUT._replace(drawn=(-0.5, 0, 0))
_PER_HEAD = (0, 0, -0.5)
ROLES: dict[str, Role] = {
    # What reads data, whose number of features has nothing to do with the width.
    "input": _INPUT,
    "embedding": _EMBEDDING,
    # An embedding that its family multiplies by the root of the width.
    "scaled_embedding": _EMBEDDING._replace(forward=(-0.5, 0, 0)),
    "hidden": _HIDDEN,
    "query": _HIDDEN._replace(forward=_PER_HEAD),
    # The last matrix of a residual branch, drawn so that the sum of all branches has one variance.
    "branch": _HIDDEN._replace(drawn=(-0.5, -0.5, 0), forward=(0, -1, 0)),
    "vector": _VECTOR,
    "query_vector": _VECTOR._replace(forward=_PER_HEAD),
    "branch_vector": _VECTOR._replace(forward=(0, -1, 0)),
    # Gains of normalized queries and keys: one vector for all heads.
    "query_gain": Role(eps=(0, -1, 0), forward=_PER_HEAD),
    "key_gain": Role(eps=(0, -1, 0)),
    "final_vector": Role(),
    "tied_final_vector": Role(forward=(-1, 0, 0)),
    "output": Role(fan_in=True, drawn=(-0.5, 0, 0), forward=(-1, 0, 0), eps=(-1, 0, 0)),
    "output_vector": Role(sgd_lr=(0, 0, 0), sgd_decay=(0, 0, 0)),
}
NO_EPSILON = ("sgd", "lion")
WORDS = {
    "mup": "the width rule alone: nothing follows the depth",
    "complete_p": "width, and depth with residual branches times 1/depth",
    "spectral": "width and depth, of Muon: one learning rate for all matrices",
}


class Factors(NamedTuple):
    """Of one parameter, relative to the rule "none": its `initial` value, its `forward` multiplier
    a, its learning rate, coupled weight decay and epsilon, these of w = w'/a."""

    initial: float = 1.0
    forward: float = 1.0
    lr: float = 1.0
    decay: float = 1.0
    eps: float = 1.0


class Transfer(NamedTuple):
    """The factors of every parameter, by path. They are static, a part of the compiled step; those
    that are 1 multiply nothing, so at the base shape the program is that of the rule "none"."""

    factors: tuple[tuple[str, Factors], ...]
    frozen: frozenset[str] = frozenset()  # what is not trained (see optim_paths)

    def held(self, params: dict) -> dict:
        """The parameters to differentiate by: no gradient is worked out of those that are
        frozen."""
        return self._where_frozen(params, jax.lax.stop_gradient)

    def initial(self, params: dict) -> dict:
        """The parameters as stored, of those that a family draws."""
        return self._times(params, lambda f: f.initial)

    def gradient(self, grads: dict) -> dict:
        """The gradient of w, which is clipped and recorded, of that of w'."""
        return self._times(grads, lambda f: f.forward)

    def around(self, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
        """From gradients of w to updates of w', by an `optimizer` of w. Its epsilon is the same for
        all, so the gradient is divided instead, to which Adam is otherwise blind."""

        if self.frozen:  # which have no state
            optimizer = optax.masked(optimizer, self._trained)

        def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
            updates = self._times(updates, lambda f: 1 / f.eps)
            params = self._times(params, lambda f: f.decay / f.forward)
            updates, state = optimizer.update(updates, state, params)
            updates = self._where_frozen(updates, jnp.zeros_like)
            return self._times(updates, lambda f: f.forward * f.lr), state

        return optax.GradientTransformation(optimizer.init, update)

    def _trained(self, tree: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda at, _: key_path(at) not in self.frozen, tree)

    def _where_frozen(self, tree: Any, change: Callable[[Array], Array]) -> Any:
        return jax.tree.map(lambda x, on: x if on else change(x), tree, self._trained(tree))

    def _times(self, tree: Any, factor: Callable[[Factors], float]) -> Any:
        known = dict(self.factors)

        def scale(path: tuple, leaf: Array) -> Array:
            number = factor(known[key_path(path)])
            return leaf if number == 1 else leaf * number

        return jax.tree_util.tree_map_with_path(scale, tree)


def transfer_rule(
    section: Mapping[str, Any], model: Model, inputs: Any, optimizer: str
) -> tuple[Transfer, str]:
    """The factors of all parameters by the section `optim.transfer` of a checked config, and the
    rule in words. Raises BadInput for what the rule does not cover."""
    rule, spec = section["rule"], model.spec
    base = _base_model(section, model)
    depth = 1.0 if rule == "mup" else spec.depth / base.spec.depth
    table, heads = role_table(model), 1.0
    if any(role.startswith("query") for _, role in table):
        heads = _shape(spec)["head_size"] / _shape(base.spec)["head_size"]
    if depth != 1 and not any(role == "branch" for _, role in table):
        raise BadInput(
            f"optim.transfer.depth: {section['depth']}, but model.depth is {spec.depth}; {rule} "
            "scales residual branches, of which this family declares none; expected one depth"
            f"{'' if optimizer == 'muon' else ', or the rule mup'}"
        )
    shapes, base_shapes = model.shapes(inputs), leaves_by_path(base.shapes(inputs))
    roles = by_table(table, shapes, f"row of TRANSFER ({type(spec).__module__})")
    matrices = _matrices(shapes) if optimizer == "muon" else set()
    factors: list[tuple[str, Factors]] = []
    seen: dict[Factors, dict[str, None]] = {}
    for path, name in leaves_by_path(roles).items():
        name = _in_model(name, model)
        sizes = leaves_by_path(shapes)[path].shape, base_shapes[path].shape
        axis = -2 if ROLES[name].fan_in else -1
        ratios = (sizes[0][axis] / sizes[1][axis], depth, heads)
        found = _factors(ROLES[name], ratios, optimizer)
        if path in matrices:
            found = _of_muon(found, name, ratios[0], *sizes)
        factors.append((path, found))
        seen.setdefault(found, {})[name] = None
    return Transfer(tuple(factors)), _words(section, model, base, seen)


def _factors(role: Role, ratios: tuple[float, float, float], optimizer: str) -> Factors:
    def power(exponents: Powers) -> float:
        return math.prod(m**e for m, e in zip(ratios, exponents, strict=True))

    sgd, forward = optimizer == "sgd", power(role.forward)
    return Factors(
        initial=forward * power(role.std) / power(role.drawn),
        forward=forward,
        lr=power(role.sgd_lr if sgd else role.lr),
        decay=power(role.sgd_decay if sgd else role.decay),
        eps=1.0 if optimizer in NO_EPSILON else power(role.eps),
    )


def _of_muon(found: Factors, role: str, width: float, shape: tuple, base: tuple) -> Factors:
    """Of a matrix that is orthogonalized: one rate for all widths, where the update is times
    sqrt(out/in); ours is times sqrt(max(1, out/in)), which is the same as long as out/in is. Weight
    decay is times 1/m_N (Qiu et al. 2025), for ladders whose steps grow with the width. There is no
    epsilon."""

    def missing(shape: tuple) -> float:
        return min(1.0, shape[-1] / math.prod(shape[-4:-1] if len(shape) == 4 else shape[-2:-1]))

    lr = math.sqrt(missing(shape) / missing(base))
    decay = 1 / width if ROLES[role].fan_in else 1.0
    return found._replace(lr=lr, decay=decay, eps=1.0)


def _matrices(shapes: dict) -> set[str]:
    """The paths of what Muon orthogonalizes."""
    from research.training import muon

    taken = jax.tree.map(lambda _, dims: dims is not None, shapes, muon.matrix_dims(shapes))
    return {path for path, matrix in leaves_by_path(taken).items() if matrix}


def role_table(model: Model) -> PathTable[str]:
    pooled = models.pooled().POOLED_TRANSFER if model.classes else ()
    return (*model.family.TRANSFER, *pooled)


def _in_model(role: str, model: Model) -> str:
    """The role, where it depends on the model's switches: what carries a multiplier."""
    if role == "final_vector" and model.spec.tie_embeddings and not model.classes:
        return "tied_final_vector"  # there is no other matrix to carry that of the logits
    if role.startswith("query") and role != "query_gain" and model.spec.qk_norm:
        return {"query": "hidden", "query_vector": "vector"}[role]  # the norm would undo it
    return role


def _base_model(section: Mapping[str, Any], model: Model) -> Model:
    """The same family at the base shape; what has no key of its own keeps its ratio."""
    spec, width = model.spec, section["width"]
    fields: dict[str, Any] = {"width": width}
    if section["depth"] is not None and section["rule"] != "mup":
        fields["depth"] = section["depth"]
    if hasattr(spec, "hidden"):
        fields["hidden"] = max(1, round(spec.hidden * width / spec.width))
    if hasattr(spec, "heads"):
        heads = fields["heads"] = width // section["head_size"]
        fields["kv_heads"] = max(1, round(heads * spec.kv_heads / spec.heads))
    try:
        return models.build(**model.described() | fields)
    except ValueError as error:  # what a family says of its own numbers
        raise BadInput(f"optim.transfer: as a base shape, model.{error}") from error


def _shape(spec: Any) -> dict[str, int]:
    """What a rule looks at of a model."""
    shape = {name: getattr(spec, name) for name in ("width", "depth") if hasattr(spec, name)}
    return shape | ({"head_size": spec.width // spec.heads} if hasattr(spec, "heads") else {})


def _words(section: Mapping[str, Any], model: Model, base: Model, seen: Mapping) -> str:
    """The rule, and on further lines what it makes of this model."""

    def of(spec: Any) -> str:
        shape = {k: v for k, v in _shape(spec).items() if k != "depth" or section["rule"] != "mup"}
        return ", ".join(f"{name.replace('_', ' ')} {size}" for name, size in shape.items())

    lines = [
        f"transfer {section['rule']}: the numbers of the config hold at {of(base.spec)}; "
        f"{WORDS[section['rule']]}"
    ]
    for factors, roles in seen.items():
        if factors != Factors():
            numbers = ", ".join(
                f"{key} x {value:.4g}" for key, value in factors._asdict().items() if value != 1
            )
            lines.append(f"{of(model.spec)}: {', '.join(roles)}: {numbers}")
    return "\n".join(lines)
