"""A model in a folder as Hugging Face `transformers` writes it, or of the hub by its name, as what
a run starts from (`init.run=hf:FOLDER`) or as a model to use."""

import dataclasses
import functools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from research.config import stored_model
from research.data import subwords
from research.errors import BadInput, first_line
from research.io import files, safetensors_files
from research.io.extras import install_command
from research.models import Model, huggingface
from research.runs.manifest import array_digests

PREFIX = "hf:"
HUB_NAME = re.compile(r"(?P<repo>[\w.-]{1,96}/[\w.-]{1,96})(?:@(?P<revision>[\w./-]{1,96}))?")
HUB_FILES = ("config.json", "tokenizer.json", "*.safetensors", safetensors_files.INDEX)
LARGEST_CONFIG, LARGEST_TOKENIZER = 1 << 20, 64 << 20  # bytes
# Fields that decide what the same arrays compute, or their shapes in a way that one understands.
COMPARED = (
    *("width", "depth", "heads", "kv_heads", "hidden", "norm", "positions", "activation"),
    *("qk_norm", "tie_embeddings", "vocab"),
)


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model from elsewhere: its fields (Model.described), its parameters by path, in float32, the
    JSON of its tokenizer ("": bytes; None: it has none) and a digest of the parameters."""

    folder: Path
    model: Mapping[str, Any]
    leaves: Mapping[str, np.ndarray]
    tokenizer: str | None
    digest: str


def folder_of(run: str) -> str:
    """What `hf:FOLDER` or `hf:OWNER/NAME` names; "" where it is no such name."""
    return run.removeprefix(PREFIX) if run.startswith(PREFIX) else ""


def read_fields(folder: str) -> dict[str, Any]:
    """The fields of a model, of its config.json. Raises BadInput for a model that this family does
    not compute."""
    return _described(folder)[1]


def read(folder: str) -> Pretrained:
    """The model of a folder; the one read last is remembered while its files are as they were.
    Raises BadInput, UnsafeFile and Damaged, by the file that is wrong."""
    folder = _place(folder)
    try:
        status = [entry.stat() for entry in sorted(os.scandir(folder), key=lambda e: e.name)]
    except OSError as error:  # a link that leads nowhere, too
        raise BadInput(f"{error.filename}: {error.strerror}") from error
    return _read(folder, tuple((s.st_size, s.st_mtime_ns, s.st_ino) for s in status))


@functools.lru_cache(maxsize=1)  # every run of a sweep asks
def _read(folder: str, stamp: tuple) -> Pretrained:
    del stamp
    place = Path(folder)
    config, model = _described(folder)
    arrays = safetensors_files.load_folder(place)
    try:
        leaves = huggingface.from_tensors(config, model, arrays)
    except BadInput as error:
        raise _prefixed(place, error) from error
    biases = [path for path in leaves if path.endswith("/bias")]
    if not any(leaves[path].any() for path in biases):
        model |= {"bias": False}  # one of zeros computes what none does
        leaves = {path: leaf for path, leaf in leaves.items() if path not in biases}
    digests = array_digests(leaves)
    digest = files.digest_of(
        {k: [list(x.shape), str(x.dtype), digests[k]] for k, x in leaves.items()}
    )
    tokenizer = None
    if (place / "tokenizer.json").exists():
        raw = safetensors_files.member(place, "tokenizer.json", LARGEST_TOKENIZER)
        text = raw.decode("utf-8", "replace")
        tokenizer = "" if subwords.is_bytes(text) else text
    return Pretrained(place, model, leaves, tokenizer, digest)


def _described(folder: str) -> tuple[dict[str, Any], dict[str, Any]]:
    place = Path(_place(folder))
    path = place / "config.json"
    config = files.parse(safetensors_files.member(place, "config.json", LARGEST_CONFIG), path)
    try:
        model = huggingface.fields(config)
    except BadInput as error:
        raise _prefixed(path, error) from error
    if problems := stored_model.model_problems(model):
        raise BadInput(*(f"{path}: {problem}" for problem in problems))
    return config, model


def _place(folder: str) -> str:
    """The folder that has the model: this one, or that of a name on the hub. Raises BadInput."""
    if os.path.isdir(folder):
        return folder
    if found := HUB_NAME.fullmatch(folder):
        return _from_hub(**found.groupdict())
    raise BadInput(
        f"{folder}: no such folder; expected one with config.json and model.safetensors, such as "
        "`hf download NAME --local-dir FOLDER` makes, or OWNER/NAME, of the hub"
    )


@functools.lru_cache(maxsize=8)  # once a process: every run of a sweep asks
def _from_hub(repo: str, revision: str | None) -> str:
    """The snapshot in the cache of the hub, fetched where it is not there; without a network, that
    of the last time."""
    name = f"{repo}@{revision}" if revision else repo
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        words = f"no such folder, and the hub needs huggingface_hub: {install_command('text')}"
        raise BadInput(f"{name}: {words}") from error
    try:
        return snapshot_download(
            repo, revision=revision, allow_patterns=[*HUB_FILES], ignore_patterns=["*/*"]
        )
    except Exception as error:
        words = "no such folder, and the hub does not give it"
        raise BadInput(f"{name}: {words}: {first_line(error)}") from error


def _prefixed(path: Path, error: BadInput) -> BadInput:
    return BadInput(*(f"{path}: {line}" for line in error.problems))


def fitted(found: Pretrained, model: Model) -> dict[str, np.ndarray]:
    """The parameters of `found` for `model`, which computes the same with them: its biases of zero
    where it alone has biases, and as many learned positions as it has. Raises BadInput where a
    field of `model` says something else."""
    spec, theirs = model.spec, found.model
    compared = [k for k in COMPARED if k != "tie_embeddings" or not model.classes]
    if theirs["positions"] == "rotary":
        compared.append("rotary_theta")
    problems = [
        f"{'data.vocab' if k == 'vocab' else f'model.{k}'}: {getattr(spec, k)}, but "
        f"{PREFIX}{found.folder} has {theirs[k]}"
        for k in compared
        if getattr(spec, k) != theirs[k]
    ]
    if theirs["bias"] and not spec.bias:
        problems.append(f"model.bias: false, but {PREFIX}{found.folder} has biases")
    learned = theirs["positions"] == "learned"
    if learned and spec.context > theirs["context"]:
        problems.append(
            f"data.context: {spec.context}, but {PREFIX}{found.folder} has {theirs['context']} "
            "learned positions"
        )
    if problems:
        raise BadInput(*problems)
    leaves = dict(found.leaves)
    if learned:
        leaves["position/embedding"] = leaves["position/embedding"][: spec.context]
    if spec.bias:
        for path in huggingface.bias_paths(leaves):
            leaves.setdefault(path, huggingface.zero_bias(leaves, path))
    return leaves
