"""Predicted bytes against what XLA itself reserves, over families, sizes and optimizers."""

import pytest

from research.config import validation
from research.config.loading import load_config, validated
from research.parallel import device_mesh
from research.planning import compiled, memory
from research.training.make_run import make_run
from research.training.trainer import Trainer
from tests.training.test_optimizers import NUMBERS

pytestmark = pytest.mark.usefixtures("barely_optimized")

ONE = {"data": 1, "fsdp": 1, "tensor": 1}
TWO = {"data": 2, "fsdp": 1, "tensor": 1}
BLOCK = {
    "size": None,
    "model.width": 64,
    "model.depth": 4,
    "model.heads": 4,
    "model.kv_heads": 4,
    "model.hidden": 192,
    "model.unroll": 1,  # a loop over blocks, as in all that are deep
    "data.context": 64,
    "batch.size": 16,
    "eval.examples": 16,
}
WIDER = BLOCK | {"model.width": 128, "model.hidden": 344, "model.depth": 6, "data.context": 128}
GRU = {key: BLOCK[key] for key in ("size", "model.width", "data.context", "batch.size")}
GRU |= {"model.depth": 2, "eval.examples": 16}


def by(name):
    numbers = {f"optim.optimizer.{key}": value for key, value in NUMBERS[name].items()}
    return {"optim.optimizer.name": name, **numbers}


CASES = {
    "transformer": ("lm_transformer", BLOCK, ONE),
    "transformer, wider": ("lm_transformer", WIDER | {"batch.size": 8}, ONE),
    "transformer, sgd": ("lm_transformer", BLOCK | by("sgd"), ONE),
    "transformer, muon": ("lm_transformer", BLOCK | by("muon"), ONE),
    "transformer, remat": ("lm_transformer", WIDER | {"model.remat": "full"}, TWO),
    "transformer, fsdp": ("lm_transformer", WIDER, {"data": 2, "fsdp": 4, "tensor": 1}),
    "transformer, tensor": ("lm_transformer", BLOCK, {"data": 2, "fsdp": 1, "tensor": 4}),
    "transformer, parts": ("lm_transformer", WIDER | {"batch.grad_accumulation": 4}, TWO),
    "transformer, GPT-2": ("lm_gpt2", BLOCK | {"model.hidden": 256}, TWO),
    "transformer, no loop": ("lm_gpt2", BLOCK | {"model.hidden": 256, "model.unroll": 4}, TWO),
    "gru": ("lm_gru", GRU, {"data": 2, "fsdp": 2, "tensor": 1}),
    "gru, wider": ("lm_gru", GRU | {"model.width": 128}, ONE),
    "cnn": ("cnn_digits", {"batch.size": 64}, TWO),
    "resnet": ("resnet_digits", {"batch.size": 32}, TWO),
    "mlp": ("mlp_teacher", {"batch.size": 256}, ONE),
    "linear": ("linear", {}, ONE),
}
CLOSE = {name: 0.1 for name in CASES if name.startswith("transformer") and "no loop" not in name}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CASES))
@pytest.mark.fault(
    "R19",
    "the bytes that are predicted",
    "within 25 % of what XLA reserves; 10 % for a transformer in a loop",
    "programs of all families and meshes compiled",
)
def test_bytes_are_those_that_xla_reserves(name, corpus, seen):
    """What is compared: arguments + results + temporaries - those that share a place. Within a
    quarter of it for every family, and a tenth for transformers with a loop over their blocks, as
    plans for larger ones promise. Without the loop, XLA on CPU works transposes for the way back
    out on the way there, and keeps them.
    """
    file, changes, sizes = CASES[name]
    config, _ = load_config(f"configs/{file}.py")
    text = {"data.path": str(corpus)} if file.startswith("lm_") else {}
    config, problems = validation.override(
        config, {"loop.steps_per_dispatch": 2, **text, **changes}
    )
    assert not problems
    run = make_run(validated(config))
    mesh = device_mesh.make_mesh(sizes, run.batch, parts=run.execution.grad_accumulation)
    found = compiled.Reserved.from_compiled(Trainer(run, mesh).lower().compile()).peak
    planned = memory.estimate(run, mesh).dispatch
    assert planned == pytest.approx(found, rel=CLOSE.get(name, 0.25))
    seen(1, f"{name} {planned / found - 1:+.1%}")
