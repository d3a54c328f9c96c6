"""A trained model as files for others: weights as safetensors, a manifest, perhaps a signature,
perhaps encrypted.

DIR/model.safetensors   the parameters by path; the averaged ones where the run has them
DIR/manifest.json       what they are and where they come from; size and SHA-256 of the other files
DIR/tokenizer.json      of text that is not read as bytes
DIR/model.sig           of all of these: an OpenSSF model signature, by a key of one's own

Or as `transformers` opens it (see model_folder), signed where wanted.

In an encrypted export each file but the signature, the manifest too, ends in .sealed (see
research/io/encryption.py).
The signature is of the files as they lie there, so that it is verified without the other key.
Digests detect accidents; who can write the files can write their digests, but neither a signature
nor, without the key, an encrypted file.
"""

import dataclasses
import logging
import os
import secrets
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from research.config import stored_model
from research.errors import BadInput, Damaged, IsoflopError, StorageError, UnsafeFile, first_line
from research.inference import model_folder
from research.inference.load import OpenedRun, built
from research.io import encryption, files, host, safetensors_files
from research.io.extras import install_command
from research.params import leaves_by_path, nest
from research.runs import metrics_log, stored_state
from research.runs.table import read_row
from research.training import fine_tuning, pretrained

log = logging.getLogger(__name__)

FORMAT = "isoflop export 1"
WEIGHTS, MANIFEST, TOKENIZER, SIGNATURE = (
    *("model.safetensors", "manifest.json", "tokenizer.json", "model.sig"),
)
SEALED = ".sealed"
LARGEST = {
    MANIFEST: 16 << 20,
    TOKENIZER: fine_tuning.LARGEST_TOKENIZER,
    SIGNATURE: 16 << 20,
}  # bytes
KINDS: dict[str, Any] = {  # of what a manifest says, as far as it is used
    **dict.fromkeys(("files", "leaves", "model", "config"), dict),
    **dict.fromkeys(("run", "name", "weights"), str),
    "step": int,
    "loss": int | float | None,
}
LARGEST_KEY = 1 << 16


@dataclasses.dataclass(frozen=True)
class Export:
    """A model out of its run: its parameters by path, on the host, what the manifest says of them
    ("config", "model", "step", …), and the JSON of its tokenizer ("": bytes)."""

    about: Mapping[str, Any]
    leaves: Mapping[str, np.ndarray]
    tokenizer: str


def from_run(run: str, step: int | None = None) -> Export:
    """The newest intact checkpoint of a run, or that of `step`. Raises BadInput if there is none,
    and as checkpoint.read."""
    start = fine_tuning.locate_checkpoint(run, step, "params")
    leaves = leaves_by_path(stored_state.read_arrays(start.path, start.part))
    launch = files.read_json(start.run / "launch.json", follow=False)
    row, metrics = read_row(start.run), metrics_log.read_records(start.run)
    losses = [m["loss"] for m in metrics if m["step"] == start.step and "loss" in m]
    about = {
        "run": start.run.name,
        "name": start.name,
        "step": start.step,
        "weights": start.part,
        "loss": losses[-1] if losses else None,
        "loss_unit": row.get("loss_unit"),
        "params": sum(leaf.size for leaf in leaves.values()),
        "model": fine_tuning.read_model_fields(start.run),
        "config": files.read_json(start.run / "config.json", follow=False),
        "data_digest": row.get("data_digest"),
        "tokenizer_digest": files.digest(start.tokenizer.encode()) if start.tokenizer else "bytes",
        "versions": launch.get("versions"),
        "commit": launch.get("commit"),
        "code": row.get("code"),
    }
    return Export(about, leaves, start.tokenizer)


def write(
    export: Export, out: str | Path, key: bytes | None = None, sign: str | None = None
) -> Path:
    """Write `export` to the new folder `out`, readable by this user alone, encrypted with `key` and
    signed by the private key in the file `sign` where given. All of it appears, or nothing.

    Raises BadInput where `out` exists or a key is none, StorageError when the disk refuses.
    """
    out = _new(out)
    content = {WEIGHTS: safetensors_files.save(export.leaves, {"format": FORMAT})}
    if export.tokenizer:
        content[TOKENIZER] = export.tokenizer.encode()
    content[MANIFEST] = _manifest(export, content)
    return _place(out, content.items(), key, sign)


def write_hf(
    export: Export,
    out: str | Path,
    sign: str | None = None,
    largest: int = safetensors_files.LARGEST_PART,
) -> Path:
    """Write `export` to the new folder `out` as `transformers` opens it, with at most `largest`
    bytes of parameters in a file. Raises as `write`, and BadInput where none of its classes
    computes the model."""
    out = _new(out)
    content = model_folder.members(export.about, export.leaves, export.tokenizer, largest)
    return _place(out, content, None, sign)


def _new(out: str | Path) -> Path:
    out = Path(os.path.abspath(out))
    if out.exists() or out.is_symlink():
        raise BadInput(f"--out={out}: is there already; an export is a new folder")
    return out


def _place(
    out: Path, content: Iterable[tuple[str, bytes]], key: bytes | None, sign: str | None
) -> Path:
    """Make the folder `out` of files of this content, which may be made one at a time."""
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir(mode=0o700)
        for name, raw in content:
            _write(temporary / (name + SEALED if key else name), raw, name, key)
        if sign:
            _sign(temporary, sign)
            _write(temporary / SIGNATURE, None)
        files.sync(temporary)
        os.rename(temporary, out)
        files.sync(out.parent)
    except OSError as error:
        raise StorageError(f"{out}: cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def read(folder: str | Path, key: bytes | None = None, verify: str | None = None) -> Export:
    """What `write` wrote, after every digest is compared; with the public key in the file `verify`
    it must be signed, too. `key` is that of an encrypted one.

    Raises BadInput for what is no export, UnsafeFile for irregular or too large files,
    Damaged where something is not as it was written, or signed or encrypted with another key.
    """
    folder = Path(folder).resolve()  # a link may lead to an export, but not out of it
    try:
        members = dict(files.walk(folder))
        if verify is not None:
            _verify(folder, members, verify)
        elif SIGNATURE in members:
            log.info("%s: is signed; --verify=PUBLIC_KEY checks by whom", folder)
        return _read(folder, members, key)
    except OSError as error:
        raise BadInput(f"{folder}: no export: {error.strerror}") from error


def open_export(path: str | Path, key: bytes | None = None, verify: str | None = None) -> OpenedRun:
    """An export ready for use, as `load.open_run` opens a run; or `hf:FOLDER`, one as transformers
    writes it. Raises as `read` does."""
    if folder := pretrained.folder_of(str(path)):
        return _open_hf(folder)
    export = read(path, key, verify)
    about = export.about
    if problems := stored_model.model_problems(about["model"]):
        raise BadInput(*(f"{path}: {problem}" for problem in problems))
    model = built(about["model"], path)
    try:
        params = nest(export.leaves)
    except (TypeError, KeyError, AttributeError) as error:
        raise BadInput(f"{path}: not a model of this version") from error
    return OpenedRun(Path(path), about["step"], model, params, export.tokenizer, about["config"])


def _open_hf(folder: str) -> OpenedRun:
    found = pretrained.read(folder)
    model = built(found.model, found.folder)
    params = nest(pretrained.fitted(found, model))
    data = {} if found.tokenizer is not None else {"path": "unknown.bin"}
    return OpenedRun(found.folder, 0, model, params, found.tokenizer or "", {"data": data})


def _manifest(export: Export, content: Mapping[str, bytes]) -> bytes:
    shapes = {k: [list(x.shape), str(x.dtype)] for k, x in sorted(export.leaves.items())}
    listed = {name: [len(raw), files.digest(raw)] for name, raw in content.items()}
    whole = {"format": FORMAT, **export.about, "leaves": shapes, "files": listed}
    return files.indented(files.digested(whole)).encode()


def _write(path: Path, raw: bytes | None, name: str = "", key: bytes | None = None) -> None:
    """A new file for this user alone, durably; None is one that is there."""
    flags = os.O_WRONLY | (os.O_CREAT | os.O_EXCL if raw is not None else 0)
    with os.fdopen(os.open(path, flags, 0o600), "wb" if raw is not None else "ab") as file:
        os.fchmod(file.fileno(), 0o600)
        if raw is not None:
            file.writelines(encryption.encrypt(raw, key, name) if key else (raw,))
        file.flush()
        os.fsync(file.fileno())


def _read(folder: Path, members: Mapping[str, os.stat_result], key: bytes | None) -> Export:
    suffix = SEALED if MANIFEST + SEALED in members else ""
    if MANIFEST + suffix not in members:
        raise BadInput(f"{folder}: no export: it has no {MANIFEST}")
    if suffix and key is None:
        key = encryption.load_key(None)

    def content(name: str, limit: int) -> bytes:
        path = folder / (name + suffix)
        if suffix and key:
            return encryption.decrypt(path, key, name, limit)
        return files.read(path, limit, follow=False)

    text = content(MANIFEST, LARGEST[MANIFEST])
    about = files.parse(text, folder / (MANIFEST + suffix))
    _check_manifest(folder, about, text)
    about.pop("digest")
    listed = about.pop("files")
    expected = {MANIFEST + suffix, *(name + suffix for name in listed)}
    if odd := sorted(expected ^ (members.keys() - {SIGNATURE})):
        raise Damaged(f"{folder}: {odd[0]}: the files are not those of the manifest")
    raw = {}
    for name, (size, digest) in listed.items():
        raw[name] = content(name, LARGEST.get(name, host.memory()))
        if [len(raw[name]), files.digest(raw[name])] != [size, digest]:
            raise Damaged(f"{folder}: {name} is not as it was written")
    leaves = _leaves(folder, about.pop("leaves"), raw[WEIGHTS])
    return Export(about, leaves, raw.get(TOKENIZER, b"").decode("utf-8", "replace"))


def _check_manifest(folder: Path, about: dict[str, Any], text: bytes) -> None:
    """Raise Damaged where a manifest is not as it was written, BadInput where it is none of
    ours."""
    if about.get("format") != FORMAT:
        raise BadInput(f"{folder}: its format is {about.get('format')!r:.50}, expected {FORMAT!r}")
    whole = files.indented(about).encode()
    if text != whole or not files.as_digested(about):
        raise Damaged(f"{folder}: the manifest is not as it was written")
    for name, kind in KINDS.items():
        value = about.get(name, False)  # which is of none of these kinds
        if not isinstance(value, kind) or isinstance(value, bool):
            raise BadInput(f"{folder}: the manifest has no {name}, or no sound one")
    known = all(
        name in (WEIGHTS, TOKENIZER) and isinstance(pair, list) and len(pair) == 2
        for name, pair in about["files"].items()
    )
    if not known or WEIGHTS not in about["files"]:
        raise BadInput(f"{folder}: the manifest lists other files than an export has")


def _leaves(folder: Path, shapes: Mapping[str, Any], raw: bytes) -> dict[str, np.ndarray]:
    leaves = safetensors_files.load(raw, f"{folder}: {WEIGHTS}")
    if {k: [list(x.shape), str(x.dtype)] for k, x in leaves.items()} != shapes:
        raise Damaged(f"{folder}: {WEIGHTS} holds other arrays than the manifest says")
    return leaves


def _model_signing() -> Any:
    try:
        import model_signing
    except ImportError as error:
        raise BadInput(
            f"signatures need the package model-signing; {install_command('export')}"
        ) from error
    return model_signing


def _sign(folder: Path, private: str) -> None:
    library = _model_signing()
    try:
        encryption.check_secret(private)
        files.read(private, LARGEST_KEY)  # a pipe would be waited for
        config = library.signing.Config().use_elliptic_key_signer(private_key=private)
        config.set_hashing_config(_hashed(library, folder)).sign(folder, folder / SIGNATURE)
    except IsoflopError:
        raise
    except Exception as error:  # of a key of another kind, too
        words = "expected a private key on the curve P-256, P-384 or P-521, as PEM"
        raise BadInput(f"--sign={private}: {first_line(error)}; {words}") from error


def _verify(folder: Path, members: Mapping[str, os.stat_result], public: str) -> None:
    library = _model_signing()
    if SIGNATURE not in members:
        raise Damaged(f"{folder}: is not signed")
    if members[SIGNATURE].st_size > LARGEST[SIGNATURE]:
        raise UnsafeFile(f"{folder / SIGNATURE}: larger than {LARGEST[SIGNATURE]} bytes")
    try:
        files.read(public, LARGEST_KEY)
        config = library.verifying.Config().use_elliptic_key_verifier(public_key=public)
    except IsoflopError:
        raise
    except Exception as error:  # of a key of another kind, too
        raise BadInput(f"--verify={public}: {first_line(error)}; expected a public key") from error
    try:
        config.set_hashing_config(_hashed(library, folder)).verify(folder, folder / SIGNATURE)
    except Exception as error:  # it has many for a signature that is none
        raise Damaged(
            f"{folder}: altered, or not signed by the key of {public} ({type(error).__name__})"
        ) from error


def _hashed(library: Any, folder: Path) -> Any:
    config = library.hashing.Config()
    return config.set_ignored_paths(paths=[folder / SIGNATURE], ignore_git_paths=False)
