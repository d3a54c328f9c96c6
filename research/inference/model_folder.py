"""An export as a folder that Hugging Face `transformers` opens without code of ours.

DIR/config.json, generation_config.json     the class that computes the model
DIR/model.safetensors, or its parts         the parameters by the names of that class
DIR/tokenizer.json, tokenizer_config.json   of bytes, too; not of ids alone
DIR/README.md                               the model card: what was trained, how far, on what
"""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from research.data import tokenizers
from research.data.subwords import bytes_json
from research.errors import printable
from research.io import files, safetensors_files
from research.models import huggingface

ABOUT = {"format": "pt"}  # without which transformers reads no file


def members(
    about: Mapping[str, Any], leaves: Mapping[str, np.ndarray], tokenizer: str, largest: int
) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the files of an Export. Raises BadInput, before any of them is made, for a
    model that no class of transformers computes."""
    model = about["model"]
    said = _tokenizer(about, tokenizer)
    end = tokenizers.from_json(tokenizer).separator if said else None
    config = huggingface.config_json(model, end)
    tensors = huggingface.to_tensors(model, leaves)
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    texts = {
        "config.json": files.indented(config),
        "generation_config.json": files.indented({"do_sample": False, **ids}),
        "README.md": card(about, config["architectures"][0]),
        **said,
    }
    few = ((name, text.encode()) for name, text in texts.items())
    return itertools.chain(few, safetensors_files.parts(tensors, ABOUT, largest))


def _tokenizer(about: Mapping[str, Any], text: str) -> dict[str, str]:
    """Bytes are ids below 256; ids of anything else have words that nothing here tells."""
    model, path = about["model"], str(_setting(about, "data", "path"))
    if not text and (path.endswith(".bin") or model["vocab"] != 256):
        return {}
    tokenizer = tokenizers.from_json(text)
    said: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model["context"],
        "clean_up_tokenization_spaces": False,
        "eos_token": tokenizer.decode([tokenizer.separator]).decode("utf-8", "replace"),
    }
    return {
        "tokenizer.json": text or bytes_json(),
        "tokenizer_config.json": files.indented(said),
    }


def card(about: Mapping[str, Any], architecture: str) -> str:
    """The model card: facts of the run alone."""
    model = about["model"]
    loss, unit = about.get("loss"), about.get("loss_unit") or "nats per token"
    facts = {
        "class": architecture,
        "parameters": f"{about['params']:,}",
        "context": f"{model['context']:,} tokens",
        "held-out loss": "not measured at this step" if loss is None else f"{loss:.4f} {unit}",
        "run": about["run"],
        "step": f"{about['step']:,}",
        "weights": "moving average" if about["weights"] == "average" else "as trained",
        "computed in training in": model["dtype"],
        "data set": f"{_setting(about, 'data', 'name')}, digest {about.get('data_digest')}",
        "tokenizer": about.get("tokenizer_digest"),
        "optimizer": _setting(about, "optim", "optimizer", "name"),
        "seed": _setting(about, "seed"),
        "commit": about.get("commit"),
        "versions": ", ".join(f"{k} {v}" for k, v in (about.get("versions") or {}).items()),
    }
    rows = [f"| {key} | {_cell(value)} |" for key, value in facts.items() if value is not None]
    head = ["---", "library_name: transformers", "pipeline_tag: text-generation", "---"]
    title = [f"# {_cell(about['name'])}", "", "A language model trained with Isoflop.", ""]
    how = [
        "```python",
        "from transformers import AutoModelForCausalLM",
        'model = AutoModelForCausalLM.from_pretrained(".")  # this folder',
        "```",
    ]
    return "\n".join([*head, "", *title, "| | |", "|---|---|", *rows, "", *how, ""])


def _setting(about: Mapping[str, Any], *keys: str) -> object:
    """A key of the run's config, which may come from elsewhere; None where it has none."""
    value: Any = about["config"]
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _cell(value: object) -> str:
    """Text of a run in a table of Markdown."""
    return printable(value).replace("|", "\\|").replace("<", "&lt;")
