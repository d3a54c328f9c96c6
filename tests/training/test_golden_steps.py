"""Three steps of every family against numbers that were written down.

Tests that A equals B pass when both change. A change here without an intention is a silent change
of the initialization, of the scale of the loss or of the optimizer: all results before it are of
another model. With an intention, `python -m tests.training.test_golden_steps` prints the numbers
to write down, and the changelog says that runs are not comparable across it.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import models
from research.training.masked_language_modeling import mask
from research.training.optimizers import Optimizer
from research.training.schedules import Choice
from research.training.step import Hyper, StepSpec
from research.training.tasks import task_class

pytestmark = pytest.mark.usefixtures("barely_optimized")

LANGUAGE = {"vocab": 61, "context": 16, "width": 32, "depth": 2, "tie_embeddings": False}
LANGUAGE |= {"dtype": "float32", "unroll": 1}
FAMILIES = {
    "transformer": LANGUAGE
    | {"heads": 4, "kv_heads": 2, "hidden": 48, "norm": "rms", "positions": "rotary"}
    | {"rotary_theta": 1e4, "activation": "swiglu", "qk_norm": False, "bias": False}
    | {"attention": "own", "remat": "none"},
    "encoder": LANGUAGE
    | {"heads": 4, "kv_heads": 4, "hidden": 64, "norm": "layer", "positions": "learned"}
    | {"rotary_theta": 1e4, "activation": "gelu", "qk_norm": False, "bias": True}
    | {"remat": "none"},
    "gru": LANGUAGE,
    "cnn": {"width": 8, "depth": 1, "hidden": 32, "image_shape": (8, 8, 1), "classes": 10},
    "resnet": {"width": 4, "depth": 1, "image_shape": (8, 8, 1), "classes": 10},
    "mlp": {"features": 6, "outputs": 3, "width": 16, "depth": 2, "activation": "tanh"},
    "linear": {"features": 6, "outputs": 3},
}
TASK = {"transformer": ("language_modeling", {"chunk": None}), "mlp": ("regression", {})}
TASK["encoder"] = "masked_language_modeling", {"chunk": None, "share": 0.15}
TASK |= {"gru": TASK["transformer"], "linear": TASK["mlp"]}
ADAM = {"name": "adam", "b1": 0.9, "b2": 0.99, "eps": 1e-8}
# Loss and gradient norm of the third step, and the root mean square of all parameters after it.
GOLDEN = {
    "transformer": (2.93107, 2.21509, 0.180833),
    "encoder": (1.77829, 3.87378, 0.173289),
    "gru": (3.81101, 0.280656, 0.177105),
    "linear": (0.831508, 0.83247, 0.0249211),
    "mlp": (0.849506, 1.30374, 0.299485),
    "cnn": (1.65099, 1.97707, 0.139122),
    "resnet": (1.99433, 1.2044, 0.209151),
}


def batch(family, rows=8):
    rng, fields = np.random.default_rng(7), FAMILIES[family]
    if family == "encoder":
        tokens = rng.integers(fields["vocab"], size=(rows, fields["context"]), dtype=np.int32)
        return mask(tokens, np.arange(rows, dtype=np.uint64), 0.15, fields["vocab"], None)
    if "vocab" in fields:
        tokens = rng.integers(fields["vocab"], size=(rows, fields["context"] + 1), dtype=np.int32)
        return {"inputs": tokens[:, :-1], "targets": tokens[:, 1:]}
    if "classes" in fields:
        inputs = rng.normal(size=(rows, *fields["image_shape"])).astype(np.float32)
        return {"inputs": inputs, "targets": rng.integers(10, size=rows, dtype=np.int32)}
    shapes = {"inputs": (rows, fields["features"]), "targets": (rows, fields["outputs"])}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def three_steps(family):
    """(loss, gradient norm, RMS of the parameters) of the third step and after it."""
    name, options = TASK.get(family, ("classification", {}))
    optimizer, numbers = Optimizer.from_config(ADAM)
    model = models.build(family, **FAMILIES[family])
    spec = StepSpec(model, task_class(name)(**options), optimizer, Choice("constant"))
    hyper = Hyper(0.01, 2.0, 10.0, None, None, None, optimizer=numbers, schedule={})
    hyper = jax.tree.map(jnp.float32, hyper)
    inputs = batch(family)
    state, metrics = spec.init(jax.random.key(0), inputs["inputs"], hyper), {}
    # What is asked for shapes alone is traced in another way than what draws them.
    assert abstract(model.shapes(abstract(inputs["inputs"]))) == abstract(state.params)
    step = jax.jit(spec.step)
    for _ in range(3):
        state, metrics = step(state, inputs, hyper)
    leaves = jax.tree.leaves(state.params)
    square = sum(float(jnp.square(leaf).sum()) for leaf in leaves)
    rms = math.sqrt(square / sum(leaf.size for leaf in leaves))
    return float(metrics["train_loss"]), float(metrics["grad_norm"]), rms


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


@pytest.mark.parametrize("family", models.MODELS)
def test_three_steps_are_those_that_were_written_down(family):
    np.testing.assert_allclose(
        three_steps(family),
        GOLDEN[family],
        rtol=2e-4,
        err_msg=f"{family}: the initialization, the loss or the step has changed. {__doc__}",
    )


if __name__ == "__main__":
    for name in models.MODELS:
        print(f'    "{name}": ({", ".join(f"{x:.6g}" for x in three_steps(name))}),')
