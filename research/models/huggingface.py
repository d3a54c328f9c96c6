"""A transformer in the layouts of Hugging Face `transformers`: which of its classes computes the
same, its config.json, and its tensors by name, there and back.

What no class computes exactly, and what a config.json asks for that this family does not compute,
is refused by name. Rotary positions pair the same features in both, so no row is permuted.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from research.errors import BadInput

EPSILON = 1e-5  # of every norm of ours (custom_vjp.normalize)
HEAD = "lm_head.weight"
# Buffers in older files, which follow from config.json.
BUFFERS = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")
EXPECTED = (
    "expected a language model of norm rms, positions rotary, activation swiglu (Llama; with "
    "qk_norm Qwen3), or of norm layer, positions learned, activation gelu, kv_heads = heads (GPT-2)"
)
Leaves = Mapping[str, np.ndarray]


class Layout(NamedTuple):
    """One class of theirs: `means` says which models of ours it computes; `sizes` and `computed`
    are keys of its config.json, of which the latter have one value each, the first of these (the
    second is what theirs takes for a missing one). `modules` pairs our modules (several lie side by
    side) with theirs; `biased` says which of ours have biases."""

    architecture: str
    means: dict[str, Any]
    sizes: dict[str, str]
    computed: dict[str, tuple[Any, Any]]
    prefix: str  # of all names but the head's
    modules: tuple[tuple[str, str], ...]
    turned: bool  # whether kernels are [out, in]
    biased: dict[str, str]  # part of a path of ours: the key of theirs that says so, "": always


_LLAMA_SIZES = {
    "vocab": "vocab_size",
    "context": "max_position_embeddings",
    "width": "hidden_size",
    "hidden": "intermediate_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
}
_GPT2_SIZES = {
    "vocab": "vocab_size",
    "context": "n_positions",
    "width": "n_embd",
    "hidden": "n_inner",
    "depth": "n_layer",
    "heads": "n_head",
}
_LLAMA_COMPUTED = {
    "hidden_act": ("silu", "silu"),
    "rms_norm_eps": (EPSILON, 1e-6),
    "pretraining_tp": (1, 1),
    "use_sliding_window": (False, False),
    "quantization_config": (None, None),
}
_GPT2_COMPUTED = {
    "activation_function": ("gelu_new", "gelu_new"),
    "layer_norm_epsilon": (EPSILON, 1e-5),
    "scale_attn_weights": (True, True),
    "scale_attn_by_inverse_layer_idx": (False, False),
    "add_cross_attention": (False, False),
    "quantization_config": (None, None),
}
_LLAMA_MODULES = (
    ("embed", "embed_tokens"),
    ("blocks/attn_norm", "layers.#.input_layernorm"),
    ("blocks/attn/query", "layers.#.self_attn.q_proj"),
    ("blocks/attn/key", "layers.#.self_attn.k_proj"),
    ("blocks/attn/value", "layers.#.self_attn.v_proj"),
    ("blocks/attn/out", "layers.#.self_attn.o_proj"),
    ("blocks/mlp_norm", "layers.#.post_attention_layernorm"),
    ("blocks/mlp/gate", "layers.#.mlp.gate_proj"),
    ("blocks/mlp/up", "layers.#.mlp.up_proj"),
    ("blocks/mlp/down", "layers.#.mlp.down_proj"),
    ("final_norm", "norm"),
)
_QK_NORM = (
    ("blocks/attn/query_norm", "layers.#.self_attn.q_norm"),
    ("blocks/attn/key_norm", "layers.#.self_attn.k_norm"),
)
_GPT2_MODULES = (
    ("embed", "wte"),
    ("position", "wpe"),
    ("blocks/attn_norm", "h.#.ln_1"),
    ("blocks/attn/query blocks/attn/key blocks/attn/value", "h.#.attn.c_attn"),
    ("blocks/attn/out", "h.#.attn.c_proj"),
    ("blocks/mlp_norm", "h.#.ln_2"),
    ("blocks/mlp/up", "h.#.mlp.c_fc"),
    ("blocks/mlp/down", "h.#.mlp.c_proj"),
    ("final_norm", "ln_f"),
)
_ROTARY = {"norm": "rms", "positions": "rotary", "activation": "swiglu"}
_LEARNED = {"norm": "layer", "positions": "learned", "activation": "gelu", "qk_norm": False}
LAYOUTS = {
    "llama": Layout(
        *("LlamaForCausalLM", _ROTARY | {"qk_norm": False}, _LLAMA_SIZES, _LLAMA_COMPUTED),
        *("model.", _LLAMA_MODULES, True, {"attn/": "attention_bias", "mlp/": "mlp_bias"}),
    ),
    "qwen3": Layout(
        *("Qwen3ForCausalLM", _ROTARY | {"qk_norm": True}, _LLAMA_SIZES),
        *(_LLAMA_COMPUTED | {"mlp_bias": (False, False)}, "model.", _LLAMA_MODULES + _QK_NORM),
        *(True, {"attn/": "attention_bias"}),
    ),
    "gpt2": Layout(
        *("GPT2LMHeadModel", _LEARNED, _GPT2_SIZES, _GPT2_COMPUTED, "transformer."),
        *(_GPT2_MODULES, False, {"norm": "", "attn/": "", "mlp/": ""}),
    ),
}


def layout_name(model: Mapping[str, Any]) -> str:
    """The key of LAYOUTS that computes a model of these fields (Model.described). Raises BadInput
    where none does."""
    if model["name"] != "transformer" or model.get("classes"):
        kind = "classifier" if model.get("classes") else model["name"]
        raise BadInput(f"no class of transformers computes this {kind}; {EXPECTED}")
    for name, layout in LAYOUTS.items():
        grouped = model["kv_heads"] != model["heads"] and "kv_heads" not in layout.sizes
        if not grouped and all(model[key] == value for key, value in layout.means.items()):
            return name
    keys = ("norm", "positions", "activation", "qk_norm", "heads", "kv_heads")
    words = ", ".join(f"{key} {model[key]}" for key in keys)
    raise BadInput(f"no class of transformers computes {words}; {EXPECTED}")


def config_json(model: Mapping[str, Any], end: int | None) -> dict[str, Any]:
    """config.json of a model in whose text the token `end` stands between documents. Raises as
    `layout_name`."""
    name = layout_name(model)
    layout, theta = LAYOUTS[name], float(model["rotary_theta"])
    rotary = {
        "head_dim": model["width"] // model["heads"],
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "rope_theta": theta,  # as versions before 5 read it
        "attention_dropout": 0.0,
    }
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    of_class: dict[str, Any] = no_dropout if name == "gpt2" else rotary
    return {
        "architectures": [layout.architecture],
        "model_type": name,
        **{theirs: model[ours] for ours, theirs in layout.sizes.items()},
        **{key: value for key, (value, _) in layout.computed.items() if value is not None},
        **of_class,
        **{key: model["bias"] for key in layout.biased.values() if key},
        "tie_word_embeddings": model["tie_embeddings"],
        "bos_token_id": None,
        "eos_token_id": end,
        "pad_token_id": None,
        "dtype": "float32",
        "torch_dtype": "float32",  # as versions before 5 read it
    }


def to_tensors(model: Mapping[str, Any], leaves: Leaves) -> dict[str, np.ndarray]:
    """The parameters of a model by the names of its class. Raises BadInput where one that is not
    zero has no place there."""
    described = config_json(model, None)
    out, placed = {}, set()
    for row in _rows(described, model["depth"]):
        placed.update(row.paths)
        parts = [_leaf(leaves, path) for path in row.paths]
        parts = parts if row.block is None else [part[row.block] for part in parts]
        whole = np.concatenate(parts, axis=-1)
        out[row.name] = np.ascontiguousarray(whole.T if row.turned else whole)
    for path in sorted(leaves.keys() - placed):
        if leaves[path].any():
            name = LAYOUTS[described["model_type"]].architecture
            raise BadInput(
                f"parameter {path} is not zero, and {name} has no place for it; where optim.paths "
                "freezes it in training it stays zero"
            )
    return out


def fields(described: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the model that a config.json describes. Raises BadInput for what this family
    does not compute; whether the values are those of a model is still to be checked."""
    name = described.get("model_type")
    layout = LAYOUTS.get(name) if isinstance(name, str) else None
    if layout is None:
        raise BadInput(f"model_type is {name!r:.50}; expected {' or '.join(LAYOUTS)}")
    sizes = {ours: described.get(theirs) for ours, theirs in layout.sizes.items()}
    if odd := [key for key in sizes if sizes[key] is not None and type(sizes[key]) is not int]:
        key = layout.sizes[odd[0]]
        raise BadInput(f"{key} is {described[key]!r:.50}; expected a whole number")
    width, heads = sizes["width"] or 0, sizes["heads"] or 1
    sizes["hidden"] = sizes["hidden"] or (4 * width if name == "gpt2" else None)
    sizes["kv_heads"] = sizes.get("kv_heads") or heads
    computed = dict(layout.computed)
    if name != "gpt2":
        usual = width // heads
        computed["head_dim"] = usual, (128 if name == "qwen3" else usual)
        if isinstance(kinds := described.get("layer_types"), list):
            computed["layer_types"] = ["full_attention"] * len(kinds), None
    problems = [
        f"{key} is {described.get(key, default)!r:.80}; expected {value!r:.80}"
        for key, (value, default) in computed.items()
        if described.get(key, default) not in ((value, None) if key == "head_dim" else (value,))
    ]
    flags = ("tie_word_embeddings", *filter(None, layout.biased.values()))
    problems += [
        f"{key} is {described[key]!r:.50}; expected true or false"
        for key in flags
        if not isinstance(described.get(key, False), bool)
    ]
    theta = 1e4 if name == "gpt2" else _theta(described, problems)
    if problems:
        raise BadInput(*(f"{problem}, all that is computed here" for problem in problems))
    return {
        "name": "transformer",
        **sizes,
        **layout.means,
        "rotary_theta": theta,
        "bias": any(not key or described.get(key, False) for key in layout.biased.values()),
        "tie_embeddings": described.get("tie_word_embeddings", name == "gpt2"),
        "dtype": "float32",
        "attention": "auto",
        "remat": "none",
        "unroll": 1,
    }


def from_tensors(
    described: Mapping[str, Any], model: Mapping[str, Any], found: Leaves
) -> dict[str, np.ndarray]:
    """The parameters of ours, by path, of tensors by their names; `model` is what `fields` made of
    `described`. Raises BadInput for a tensor that is missing, too many, of an odd shape or not
    finite."""
    layout = LAYOUTS[described["model_type"]]
    left = {name.removeprefix(layout.prefix): tensor for name, tensor in found.items()}
    parts: dict[str, list[np.ndarray]] = {}
    for row in _rows({**described, "tie_word_embeddings": model["tie_embeddings"]}, model["depth"]):
        tensor = left.pop(row.name.removeprefix(layout.prefix), None)
        if tensor is None:
            raise BadInput(f"has no tensor {row.name}")
        if tensor.ndim != row.rank or tensor.shape[-1] % len(row.paths):
            raise BadInput(f"{row.name} is of shape {tensor.shape}, which {row.paths[0]} is not")
        if not np.isfinite(tensor).all():
            raise BadInput(f"{row.name} holds numbers that are not finite")
        whole = tensor.T if row.turned else tensor
        for path, part in zip(row.paths, np.split(whole, len(row.paths), axis=-1)):
            parts.setdefault(path, []).append(part)
            if part.shape != parts[path][0].shape:
                raise BadInput(f"{row.name} is of shape {tensor.shape}, unlike that of block 0")
    twin = left.pop(HEAD, None)  # of a tied head; versions before 5 of theirs do not look at it
    if twin is not None and not np.array_equal(twin, parts["embed/embedding"][0]):
        raise BadInput(f"tie_word_embeddings is true, but {HEAD} differs from the embedding")
    if odd := [name for name in left if not name.endswith(BUFFERS)]:
        raise BadInput(f"has a tensor {odd[0]:.80}, which {layout.architecture} has not")
    return {
        path: np.stack(list_) if path.startswith("blocks/") else np.ascontiguousarray(list_[0])
        for path, list_ in parts.items()
    }


def bias_paths(leaves: Leaves) -> list[str]:
    """The paths of the biases of a model of these leaves whose field `bias` is true."""
    biased = (path.rpartition("/") for path in leaves if path.endswith(("/kernel", "/scale")))
    return [
        f"{module}/bias"
        for module, _, _ in biased
        if module != "head" and not module.endswith(("query_norm", "key_norm"))
    ]


def zero_bias(leaves: Leaves, path: str) -> np.ndarray:
    """A bias of zeros for the path that a model of these leaves lacks."""
    module = path.removesuffix("/bias")
    beside = leaves[f"{module}/scale" if f"{module}/scale" in leaves else f"{module}/kernel"]
    stacked = beside.shape[:1] if path.startswith("blocks/") else ()
    return np.zeros((*stacked, beside.shape[-1]), beside.dtype)


class _Row(NamedTuple):
    """One tensor of theirs: what of ours it holds, of which block, and whether transposed."""

    name: str
    paths: list[str]
    block: int | None
    turned: bool
    rank: int


def _rows(described: Mapping[str, Any], depth: int) -> Iterator[_Row]:
    layout = LAYOUTS[described["model_type"]]
    has = [part for part, key in layout.biased.items() if not key or described.get(key)]
    for ours, theirs in layout.modules:
        norm, embedding = ours.endswith("norm"), ours in ("embed", "position")
        leaf = "scale" if norm else "embedding" if embedding else "kernel"
        biased = not embedding and any(part in ours for part in has)
        biased = biased and not ours.endswith(("query_norm", "key_norm"))
        for block in range(depth) if "#" in theirs else (None,):
            name = layout.prefix + theirs.replace("#", str(block))
            turned, rank = layout.turned and leaf == "kernel", 1 if norm else 2
            paths = [f"{module}/{leaf}" for module in ours.split()]
            yield _Row(f"{name}.weight", paths, block, turned, rank)
            if biased:
                paths = [f"{module}/bias" for module in ours.split()]
                yield _Row(f"{name}.bias", paths, block, False, 1)
    if not described["tie_word_embeddings"]:
        yield _Row(HEAD, ["head/kernel"], None, True, 2)


def _leaf(leaves: Leaves, path: str) -> np.ndarray:
    if path not in leaves and path.endswith("/bias"):
        return zero_bias(leaves, path)
    return leaves[path]


def _theta(described: Mapping[str, Any], problems: list[str]) -> float:
    """The base of the rotary angles; what scales them is added to `problems`."""
    rope = described.get("rope_parameters") or {}
    scaled = described.get("rope_scaling")
    rope = rope if isinstance(rope, Mapping) else {"rope_type": rope}
    kinds = {key: rope[key] for key in rope if key != "rope_theta"}
    if kinds and kinds not in ({"rope_type": "default"}, {"type": "default"}):
        problems.append(f"rope_parameters is {dict(rope)!r:.80}; expected rope_type default")
    if scaled not in (None, {"rope_type": "default"}, rope):
        problems.append(f"rope_scaling is {scaled!r:.80}; expected none")
    if described.get("partial_rotary_factor", 1.0) != 1.0:
        problems.append(f"partial_rotary_factor is {described['partial_rotary_factor']!r:.50}; "
                        "expected 1")  # fmt: skip
    theta = rope.get("rope_theta", described.get("rope_theta", 1e4))
    if type(theta) not in (int, float) or not 0 < theta < math.inf:
        problems.append(f"rope_theta is {theta!r:.50}; expected a number above 0")
    return theta
