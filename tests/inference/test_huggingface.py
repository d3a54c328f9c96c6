"""A model goes out as a folder that `transformers` opens and computes the same with, and comes back
bit by bit; what no class there, or no model here, computes is refused by name."""

import dataclasses
import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from research import models
from research.errors import BadInput, Damaged, UnsafeFile
from research.inference import export
from research.inference.generate import generate
from research.io import safetensors_files
from research.models import huggingface
from research.parallel import device_mesh
from research.params import leaves_by_path, nest
from research.runs.directory import RunDirectory
from research.training import pretrained
from research.training.loop import train_run
from research.training.make_run import make_run
from research.training.trainer import Trainer

pytest.importorskip("safetensors")
pytestmark = pytest.mark.usefixtures("barely_optimized")

SIDE = Path(__file__).with_name("transformers_side.py")
ELSEWHERE = "ISOFLOP_TEST_TRANSFORMERS"  # a Python that has transformers and torch
VOCAB, CONTEXT = 61, 80
LLAMA = {
    "name": "transformer",
    "vocab": VOCAB,
    "context": CONTEXT,
    "width": 32,
    "depth": 2,
    "heads": 4,
    "kv_heads": 4,
    "hidden": 48,
    "norm": "rms",
    "positions": "rotary",
    "rotary_theta": 5e4,
    "activation": "swiglu",
    "qk_norm": False,
    "bias": False,
    "tie_embeddings": False,
    "dtype": "float32",
    "attention": "own",
    "remat": "none",
    "unroll": 1,
}
GPT2 = LLAMA | {"norm": "layer", "positions": "learned", "activation": "gelu"}
QWEN3 = LLAMA | {"qk_norm": True}
VARIANTS = {
    "llama": LLAMA,
    "llama tied": LLAMA | {"tie_embeddings": True},
    "llama grouped": LLAMA | {"kv_heads": 2},
    "llama biased": LLAMA | {"bias": True},
    "qwen3": QWEN3,
    "qwen3 tied grouped": QWEN3 | {"tie_embeddings": True, "kv_heads": 1},
    "gpt2 tied": GPT2 | {"tie_embeddings": True},
    "gpt2": GPT2,
    "gpt2 biased tied": GPT2 | {"bias": True, "tie_embeddings": True},
}
DEPTHS = (1, 3)
EVERY = [(name, depth) for name in VARIANTS for depth in DEPTHS]
SAID = "the cat, 12 és and Ā"  # the last is how byte-level vocabularies write the byte 0
TOKENS = np.random.default_rng(5).integers(0, VOCAB, (3, 24))


def leaves_of(fields, seed=0):
    """Parameters none of which is what it begins as, but those that have no place there."""
    model = models.build(**fields)
    params = leaves_by_path(model.init(jax.random.key(seed), np.zeros((1, 4), np.int32)))
    rng = np.random.default_rng(seed)
    out = {k: np.asarray(x + 0.1 * rng.normal(size=x.shape), np.float32) for k, x in params.items()}
    if fields["norm"] == "rms":
        out |= {k: np.zeros_like(x) for k, x in out.items() if k.endswith("norm/bias")}
    return out


@functools.cache
def made(name, depth=2):
    fields = VARIANTS[name] | {"depth": depth}
    about = {"name": "a|b", "run": "0123456789ab", "step": 7, "loss": 1.25, "loss_unit": "nats"}
    about |= {"weights": "params", "params": 1234, "model": fields, "config": {"seed": 3}}
    return export.Export(about, leaves_of(fields), "")


def logits(fields, leaves, tokens=TOKENS):
    model, params = models.build(**fields), nest(leaves)
    flat = model.unembed(params, model.apply(params, tokens.astype(np.int32)))
    return np.asarray(flat).reshape(*tokens.shape, -1)


def fitted(folder, fields):
    return pretrained.fitted(pretrained.read(str(folder)), models.build(**fields))


def same(one, other):
    assert one.keys() == other.keys()
    return all((one[k] == other[k]).all() and one[k].dtype == other[k].dtype for k in one)


@pytest.mark.parametrize(("name", "depth"), EVERY)
def test_a_model_comes_back_bit_by_bit(name, depth, tmp_path):
    model = made(name, depth)
    folder = export.write_hf(model, tmp_path / "hf")
    assert same(fitted(folder, model.about["model"]), model.leaves)
    other = leaves_of(model.about["model"], seed=1)
    assert not same(fitted(folder, model.about["model"]), other)  # the twin


@pytest.mark.parametrize("name", VARIANTS)
def test_its_config_says_what_it_is(name, tmp_path):
    fields = made(name).about["model"]
    export.write_hf(made(name), tmp_path / "hf")
    found = pretrained.read_fields(str(tmp_path / "hf"))
    asked = set(fields) - {"attention", "rotary_theta", "bias"}
    assert {k: found[k] for k in asked} == {k: fields[k] for k in asked}
    assert models.build(**found), "which a model is made of"


def test_parts_hold_what_one_file_holds(tmp_path):
    model = made("llama biased")
    whole = export.write_hf(model, tmp_path / "whole")
    parts = export.write_hf(model, tmp_path / "parts", largest=20_000)
    index = json.loads((parts / "model.safetensors.index.json").read_text())
    names = sorted(set(index["weight_map"].values()))
    assert len(names) > 2
    assert names == sorted(p.name for p in parts.glob("*.safetensors"))
    assert [p.name for p in whole.glob("*.safetensors")] == ["model.safetensors"]
    assert max((parts / name).stat().st_size for name in names) < 30_000
    total = sum(leaf.nbytes for leaf in model.leaves.values() if leaf.any())
    assert index["metadata"]["total_size"] == total
    one, other = (safetensors_files.load_folder(folder) for folder in (whole, parts))
    assert same(one, other)
    (parts / names[1]).unlink()
    with pytest.raises(BadInput, match=f"{names[1]}: No such file"):
        safetensors_files.load_folder(parts)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"activation": "relu2"}, "no class of transformers computes norm rms, .*relu2.*expected"),
        ({"norm": "layer"}, "computes norm layer, positions rotary, activation swiglu"),
        ({**GPT2, "kv_heads": 2}, "heads 4, kv_heads 2; expected .* kv_heads = heads"),
        ({"classes": 3, "pad": 0}, "computes this classifier"),
        ({"name": "gru"}, "computes this gru; expected a language model"),
    ],
)
def test_what_no_class_computes_is_refused(changes, words, tmp_path):
    about = made("llama").about
    odd = export.Export(about | {"model": about["model"] | changes}, made("llama").leaves, "")
    with pytest.raises(BadInput, match=words):
        export.write_hf(odd, tmp_path / "hf")
    assert not list(tmp_path.iterdir())


def test_a_bias_without_a_place_is_refused_unless_it_is_zero(tmp_path):
    model = made("llama biased")
    for path in ("blocks/attn_norm/bias", "final_norm/bias"):
        odd = model.leaves | {path: model.leaves[path] + 1}
        with pytest.raises(BadInput, match=f"parameter {path} is not zero, and LlamaForCausalLM"):
            export.write_hf(dataclasses.replace(model, leaves=odd), tmp_path / "hf")
    biased = QWEN3 | {"bias": True}
    about = model.about | {"model": biased}
    with pytest.raises(BadInput, match="blocks/mlp/down/bias is not zero, and Qwen3ForCausalLM"):
        export.write_hf(export.Export(about, leaves_of(biased), ""), tmp_path / "hf")
    leaves = {k: x * (not k.startswith("blocks/mlp/") or "bias" not in k)
              for k, x in leaves_of(biased).items()}  # fmt: skip
    folder = export.write_hf(export.Export(about, leaves, ""), tmp_path / "hf")
    assert same(fitted(folder, biased), leaves)


@pytest.fixture
def folder(tmp_path):
    return export.write_hf(made("llama"), tmp_path / "hf")


def saying(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v != "absent"}))
    return str(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}, "yarn"),
        ({"rope_parameters": "absent", "rope_scaling": {"type": "linear", "factor": 2}}, "linear"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; expected 1"),
        ({"use_sliding_window": True}, "use_sliding_window is True; expected False"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types is"),
        ({"rms_norm_eps": 1e-6}, "rms_norm_eps is 1e-06; expected 1e-05"),
        ({"rms_norm_eps": "absent"}, "rms_norm_eps is 1e-06; expected 1e-05"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; expected 'silu'"),
        ({"head_dim": 16}, "head_dim is 16; expected 8"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is"),
        ({"model_type": "mistral"}, "model_type is 'mistral'; expected llama or qwen3 or gpt2"),
        ({"model_type": ["llama"]}, "model_type is"),
        ({"hidden_size": 0, "head_dim": 0}, r"model\.width: 0 is out of range"),
        ({"hidden_size": "32"}, "hidden_size is '32'; expected a whole number"),
        ({"num_hidden_layers": "absent"}, r"model\.depth"),
        ({"num_hidden_layers": 10**9}, r"model\.depth: 1000000000 is"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no'; expected true or false"),
        ({"attention_bias": 2}, "attention_bias is 2; expected true or false"),
        ({"attention_bias": True}, "has no tensor model.layers.0.self_attn.q_proj.bias"),
        ({"num_key_value_heads": 3}, r"model\.kv_heads: 3 does not divide model\.heads = 4"),
        ({"num_attention_heads": 5, "head_dim": "absent"}, r"model\.heads: 5 does not divide"),
        ({"num_hidden_layers": 1}, "has a tensor layers.1.*which LlamaForCausalLM has not"),
        ({"num_hidden_layers": 3}, "has no tensor model.layers.2.input_layernorm.weight"),
        ({"rope_parameters": {"rope_theta": -1.0}}, "rope_theta is -1.0; expected a number above"),
    ],
)
def test_what_is_not_computed_here_is_refused(folder, changes, words):
    pretrained.read(str(folder))  # the twin
    with pytest.raises(BadInput, match=words):
        pretrained.read(saying(folder, **changes))


def test_what_older_files_say_otherwise_is_the_same(folder):
    expected = pretrained.read(str(folder))
    old = {"rope_parameters": "absent", "rope_theta": 5e4, "rope_scaling": None, "head_dim": None}
    found = pretrained.read(saying(folder, **old, dtype="absent", pretraining_tp=1))
    assert (found.model, found.digest) == (expected.model, expected.digest)
    other = pretrained.read(saying(folder, rope_theta="absent"))
    assert other.model["rotary_theta"] == 1e4 != expected.model["rotary_theta"]


def rewritten(folder, change):
    found = safetensors_files.load_folder(folder)
    change(found)
    (folder / "model.safetensors").write_bytes(safetensors_files.save(found, {"format": "pt"}))
    return str(folder)


def test_names_without_a_prefix_and_buffers_are_known(tmp_path):
    model = made("gpt2 tied")
    folder = export.write_hf(model, tmp_path / "hf")

    def older(found):
        for name in list(found):
            found[name.removeprefix("transformer.")] = found.pop(name)
        found["h.0.attn.bias"] = np.ones((1, 1, 4, 4), np.float32)
        found["lm_head.weight"] = found["wte.weight"]

    rewritten(folder, older)
    assert same(fitted(folder, model.about["model"]), model.leaves)
    rewritten(folder, lambda found: found.update({"h.0.more": np.zeros(2, np.float32)}))
    with pytest.raises(BadInput, match=r"has a tensor h\.0\.more"):
        pretrained.read(str(folder))


def test_a_head_that_is_said_to_be_tied_and_is_not_is_refused(tmp_path):
    """transformers 5 does not tie it then, 4 does."""
    folder = export.write_hf(made("llama tied"), tmp_path / "hf")
    embedding = "model.embed_tokens.weight"
    rewritten(folder, lambda found: found.update({"lm_head.weight": found[embedding]}))
    assert same(pretrained.read(str(folder)).leaves, made("llama tied").leaves)
    rewritten(folder, lambda found: found.update({"lm_head.weight": found[embedding] + 1}))
    with pytest.raises(BadInput, match=r"tie_word_embeddings is true, but lm_head.weight differs"):
        pretrained.read(str(folder))


def test_of_a_whole_file_and_parts_the_whole_one_is_read(tmp_path):
    """As transformers does."""
    folder = export.write_hf(made("llama", 2), tmp_path / "hf")
    other = dataclasses.replace(made("llama", 2), leaves=leaves_of(LLAMA, seed=1))
    parts = export.write_hf(other, tmp_path / "parts", largest=20_000)
    for path in parts.glob("model*"):
        shutil.copy(path, folder)
    assert same(pretrained.read(str(folder)).leaves, made("llama", 2).leaves)
    (folder / "model.safetensors").unlink()
    assert same(pretrained.read(str(folder)).leaves, other.leaves)


def test_a_name_of_the_hub_is_what_lies_in_its_cache(tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    names = {"main": "llama", "old": "llama grouped"}
    cache = tmp_path / "models--some--model"
    for revision, name in names.items():
        commit = revision.ljust(40, "0")
        export.write_hf(made(name), cache / "snapshots" / commit)
        (cache / "refs").mkdir(exist_ok=True)
        (cache / "refs" / revision).write_text(commit)
    for place, name in (("some/model", "llama"), ("some/model@old", "llama grouped")):
        assert same(pretrained.read(place).leaves, made(name).leaves)
    with pytest.raises(BadInput, match="some/other: no such folder, and the hub does not give it"):
        pretrained.read("some/other")


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("model.layers.1.mlp.up_proj.weight", (48, 31), "unlike that of block 0"),
        ("model.norm.weight", (2, 2), "model.norm.weight is of shape"),
    ],
)
def test_an_odd_shape_is_refused(folder, name, shape, words):
    rewritten(folder, lambda found: found.update({name: np.ones(shape, np.float32)}))
    with pytest.raises(BadInput, match=words):
        pretrained.read(str(folder))


def test_weights_that_are_not_finite_are_refused(folder):
    rewritten(folder, lambda found: found.update({"model.norm.weight": np.full(32, np.nan, "f4")}))
    with pytest.raises(BadInput, match=r"hf: model.norm.weight holds numbers that are not finite"):
        pretrained.read(str(folder))


def test_heads_that_no_rotation_turns_are_refused(folder):
    odd = {"num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 1}
    with pytest.raises(BadInput, match=r"hf: model.heads: 32 of 1 features in a width of 32"):
        export.open_export(f"hf:{saying(folder, **odd)}")


def test_halves_are_read_exactly(folder):
    """float16 and bfloat16 of another's file are numbers of float32."""
    whole = safetensors_files.load_folder(folder)["model.norm.weight"]
    half = whole.astype(np.float16)
    import ml_dtypes
    from safetensors import TensorSpec, serialize

    brain = np.ascontiguousarray(whole.astype(ml_dtypes.bfloat16))
    specs = {
        key: TensorSpec(dtype=kind, shape=x.shape, data_ptr=x.ctypes.data, data_len=x.nbytes)
        for key, kind, x in (("half", "float16", half), ("brain", "bfloat16", brain))
    }
    (folder / "model.safetensors").write_bytes(bytes(serialize(specs)))
    found = safetensors_files.load_folder(folder)
    np.testing.assert_array_equal(found["half"], half.astype(np.float32), strict=True)
    np.testing.assert_array_equal(found["brain"], brain.astype(np.float32), strict=True)
    assert (found["brain"] != whole).any()


def test_a_file_elsewhere_is_not_read(folder, tmp_path):
    weights = folder / "model.safetensors"
    shutil.move(weights, tmp_path / "outside")
    weights.symlink_to(tmp_path / "outside")
    with pytest.raises(UnsafeFile, match="leads out of"):
        pretrained.read(str(folder))
    # As the cache of the hub lies.
    cache = tmp_path / "models--a--b"
    (cache / "blobs").mkdir(parents=True)
    shutil.move(tmp_path / "outside", cache / "blobs" / "0123")
    snapshot = shutil.copytree(folder, cache / "snapshots" / "abc", symlinks=True)
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to("../../blobs/0123")
    assert same(pretrained.read(str(snapshot)).leaves, made("llama").leaves)
    where = {"weight_map": {"a": "../../../secret.safetensors"}}
    weights.unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(where))
    with pytest.raises(UnsafeFile, match="expected one beside it"):
        pretrained.read(str(folder))


def test_a_damaged_file_is_told(folder):
    raw = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(raw[:-4])
    with pytest.raises(Damaged, match=r"model\.safetensors: "):
        pretrained.read(str(folder))


# In a run.


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    run = make_run(tiny({"model.kv_heads": 1, "horizon.amount": 4.0}))
    with RunDirectory(tmp_path_factory.mktemp("run"), run.id) as directory:
        train_run(run, directory)
    return directory.path


@pytest.fixture(scope="module")
def gone_out(trained, tmp_path_factory):
    return export.write_hf(export.from_run(str(trained)), tmp_path_factory.mktemp("out") / "hf")


def start_of(run):
    one = {"data": 1, "fsdp": 1, "tensor": 1}
    return Trainer(run, device_mesh.make_mesh(one, run.batch)).init()


def test_a_run_starts_from_it_as_from_the_run_that_it_was(tiny, trained, gone_out):
    own = make_run(tiny({"model.kv_heads": 1, "init.run": str(trained)}))
    back = make_run(tiny({"model.kv_heads": 1, "init.run": f"hf:{gone_out}"}))
    assert back.id == own.id
    assert back.id != make_run(tiny({"model.kv_heads": 1})).id
    assert "parameter arrays of hf hf" in back.start.rule
    one, other = (leaves_by_path(jax.device_get(start_of(run).params)) for run in (own, back))
    assert same(one, other)


def test_its_shape_can_be_taken(tiny, gone_out):
    sized = dict.fromkeys(("width", "depth", "heads", "kv_heads", "hidden"))
    sized = {f"model.{key}": None for key in sized}
    run = make_run(tiny({**sized, "init.run": f"hf:{gone_out}", "init.what": "shape"}))
    assert run.model.spec.kv_heads == 1
    assert run.start is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.rotary_theta": 500.0}, r"model.rotary_theta: 500.0, but hf:.* has 10000.0"),
        ({"model.heads": 4, "model.kv_heads": 2}, r"model.heads: 4, but hf:.* has 2"),
        ({"model.tie_embeddings": True}, "model.tie_embeddings: True, but"),
        ({"init.step": 3}, "init.step is given; expected params and no step"),
        ({"init.what": "state"}, "init.what is state; expected params"),
    ],
)
def test_a_model_that_would_compute_something_else_is_refused(tiny, gone_out, changes, words):
    with pytest.raises(BadInput, match=words):
        make_run(tiny({"model.kv_heads": 1, "init.run": f"hf:{gone_out}", **changes}))


def test_a_folder_that_is_none_is_told(tiny, tmp_path):
    with pytest.raises(BadInput, match=r"init.run: .*nowhere: no such folder; expected one with"):
        make_run(tiny({"init.run": "hf:nowhere"}))
    with pytest.raises(BadInput, match=r"config.json: No such file"):
        make_run(tiny({"init.run": f"hf:{tmp_path}"}))


def test_another_tokenizer_is_refused(tiny, gone_out, tmp_path):
    copy = shutil.copytree(gone_out, tmp_path / "hf")
    assert pretrained.read(str(copy)).tokenizer == ""  # bytes
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(BadInput, match=r"data.tokenizer: not that of init.run; expected .*hf/tok"):
        make_run(tiny({"model.kv_heads": 1, "init.run": f"hf:{copy}"}))
    (copy / "tokenizer.json").unlink()
    assert make_run(tiny({"model.kv_heads": 1, "init.run": f"hf:{copy}"})).start is not None


def test_learned_positions_are_cut_and_biases_of_zero_added(tmp_path):
    model = made("gpt2")
    folder = export.write_hf(model, tmp_path / "hf")
    short = GPT2 | {"context": 16, "bias": True}
    leaves = fitted(folder, short)
    path = "position/embedding"
    np.testing.assert_array_equal(leaves[path], model.leaves[path][:16])
    assert leaves.keys() == leaves_of(short).keys()
    tokens = TOKENS[:, :16]
    np.testing.assert_array_equal(logits(short, leaves, tokens), logits(GPT2, model.leaves, tokens))
    with pytest.raises(BadInput, match=r"data.context: 100, but hf:.* has 80 learned positions"):
        fitted(folder, GPT2 | {"context": 100})
    biased = export.write_hf(made("gpt2 biased tied"), tmp_path / "biased")
    with pytest.raises(BadInput, match=r"model.bias: false, but hf:.* has biases"):
        fitted(biased, GPT2 | {"tie_embeddings": True})


def test_the_commands(trained, tmp_path, capsys):
    from experiments import export as command
    from experiments import generate as speak

    out = tmp_path / "hf"
    assert command.main([f"--run={trained}", f"--out={out}", "--format=hf"]) == 0
    assert str(out) in capsys.readouterr().out
    names = {"config.json", "generation_config.json", "model.safetensors", "README.md"}
    names |= {"tokenizer.json", "tokenizer_config.json"}
    assert {p.name for p in out.iterdir()} == names
    assert {p.stat().st_mode & 0o777 for p in out.iterdir()} == {0o600}
    card = (out / "README.md").read_text()
    row = json.loads((trained / "result.json").read_text())
    for fact in (f"{row['params']:,}", f"{row['loss']:.4f}", row["data_digest"], trained.name):
        assert fact in card
    texts = []
    for where in (f"--runs={trained}", f"--export=hf:{out}"):
        speak.main([where, "--prompt=the ", "--tokens=12"])
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    with pytest.raises(BadInput, match="--encrypt: of no use with --format=hf"):
        command.main([f"--run={trained}", "--out=x", "--format=hf", "--encrypt"])
    with pytest.raises(BadInput, match="--format: of no use with --check"):
        command.main(["--check=x", "--format=hf"])


def test_a_card_holds_no_markup_of_a_name(tmp_path):
    card = (export.write_hf(made("llama"), tmp_path / "hf") / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "# a\\|b" in card


# Against the real thing.

MAKE = {
    "llama made there": {
        "model_type": "llama",
        "rms_norm_eps": 1e-5,
        "num_key_value_heads": 2,
        "attention_bias": True,
        "mlp_bias": True,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": VOCAB,
        "max_position_embeddings": CONTEXT,
    },
    "qwen3 made there": {
        "model_type": "qwen3",
        "rms_norm_eps": 1e-5,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "vocab_size": VOCAB,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": True,
        "shard": "20KB",
    },
    "gpt2 made there": {
        "model_type": "gpt2",
        "n_positions": CONTEXT,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "vocab_size": VOCAB,
        "dtype": "bfloat16",
    },
}


@pytest.fixture(scope="module")
def theirs(gone_out, tmp_path_factory):
    """What `transformers` says of all variants, of its own models, and of the trained one."""
    python = os.environ.get(ELSEWHERE, sys.executable)
    probe = [python, "-I", "-c", "import torch, transformers"]
    if subprocess.run(probe, capture_output=True).returncode:
        pytest.skip(f"no transformers and torch; {ELSEWHERE}=PYTHON names one that has them")
    top = tmp_path_factory.mktemp("theirs")
    ours = {key: export.write_hf(made(*key), top / f"{key[0]} {key[1]}") for key in EVERY}
    parts = export.write_hf(made("qwen3"), top / "parts", largest=20_000)
    made_there = {str(top / name): config for name, config in MAKE.items()}
    texts = {str(gone_out): SAID}
    job = {"tokens": TOKENS.tolist(), "make": made_there, "encode": texts}
    job["open"] = [*map(str, ours.values()), str(parts), *made_there]
    (top / "job.json").write_text(json.dumps(job))
    argv = [python, "-I", str(SIDE), str(top / "job.json"), str(top / "out.npz")]
    offline = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(argv, capture_output=True, text=True, env=offline)
    assert done.returncode == 0, done.stderr[-3000:]
    return top, dict(np.load(top / "out.npz"))


def close(one, other):
    return np.abs(one - other).max() <= 1e-5 * np.abs(other).max()


def greedy(fields, leaves):
    prompt = TOKENS[0, :4].tolist()
    return generate(models.build(**fields), nest(leaves), prompt, 64, temperature=0.0)[0]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "depth"), [*EVERY, ("parts", None)])
def test_transformers_computes_the_same(theirs, name, depth):
    top, said = theirs
    model = made(name, depth) if depth else made("qwen3")
    folder, fields = top / (f"{name} {depth}" if depth else name), model.about["model"]
    own = logits(fields, model.leaves)
    assert close(said[f"{folder} logits"], own)
    assert not close(said[f"{folder} logits"], logits(fields, leaves_of(fields, seed=1)))
    np.testing.assert_array_equal(said[f"{folder} greedy"], greedy(fields, model.leaves))
    assert str(said[f"{folder} class"]) == huggingface.LAYOUTS[huggingface.layout_name(fields)][0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2 tied"])
def test_a_model_computed_in_bfloat16_is_theirs_within_its_rounding(theirs, name):
    top, said = theirs
    model = made(name, 3)
    own = logits(model.about["model"] | {"dtype": "bfloat16"}, model.leaves)
    off = np.abs(said[f"{top / name} 3 logits"] - own).max() / np.abs(own).max()
    assert 1e-4 < off < 2**-5  # a step of its numbers is 2^-8 of them


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKE)
def test_a_model_of_theirs_computes_the_same_here(theirs, name):
    top, said = theirs
    found = pretrained.read(str(top / name))
    model = models.build(**found.model)
    leaves = pretrained.fitted(found, model)
    assert found.model["bias"] == (name != "qwen3 made there")
    assert close(said[f"{top / name} logits"], logits(found.model, leaves))
    np.testing.assert_array_equal(said[f"{top / name} greedy"], greedy(found.model, leaves))


@pytest.mark.slow
def test_their_tokenizer_reads_bytes_as_ours_does(theirs, gone_out):
    said = theirs[1]
    np.testing.assert_array_equal(said[f"{gone_out} ids"], list(SAID.encode()))
    assert str(said[f"{gone_out} text"]) == SAID
    assert int(said[f"{gone_out} end"]) == 0  # which ends a document
