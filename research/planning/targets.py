"""Machines that a program can be compiled for without one: what --compile says, which package has
the compiler, and the devices as it knows them."""

import importlib.util
import math
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from research.errors import BadInput
from research.io.extras import install_command
from research.planning import hardware

NODE = 8  # GPUs in a host
MOST_CPUS = 512  # simulated
EXPECTED = "expected h100:8, h100:1x8x8 (hosts x GPUs), tpu:v5e:16x16, tpu:v5p:4x4x4 or cpu:8"
# Dimensions of a TPU's torus.
TORUS = {"v5e": 2, "v5p": 3, "v6e": 2}

# What XLA must know of a card, in the fields of its target configuration; of Hopper where no other
# is named. From NVIDIA's documents on compute capability 8.0 and 9.0 and the cards' data sheets.
_CARD = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "shared_memory_per_block": 49152,
    "shared_memory_per_core": 233472,
    "threads_per_core_limit": 2048,
    "core_count": 132,
    "fpus_per_core": 128,
    "block_dim_limit_x": 2147483647,
    "block_dim_limit_y": 65535,
    "block_dim_limit_z": 65535,
    "memory_bandwidth": 3352320000000,
    "l2_cache_size": 52428800,
    "clock_rate_ghz": 1.98,
    "device_memory_size": 84942979072,
    "shared_memory_per_block_optin": 232448,
    "cuda_compute_capability": "{ major: 9 }",
    "registers_per_core_limit": 65536,
    "registers_per_block_limit": 65536,
}
_A100 = {"core_count": 108, "fpus_per_core": 64, "l2_cache_size": 41943040, "clock_rate_ghz": 1.41}
_A100 |= {"shared_memory_per_core": 167936, "shared_memory_per_block_optin": 166912}
_A100 |= {"memory_bandwidth": 2039000000000, "cuda_compute_capability": "{ major: 8 }"}
CARDS: dict[str, Mapping[str, object]] = {
    "h100": _CARD,
    "h200": {**_CARD, "memory_bandwidth": 4800000000000, "device_memory_size": 150754820096},
    "a100": {**_CARD, **_A100},
}
# XLA on GPUs chooses tiles for Triton's products by trying them on the card, and finds none for
# some widths without one: products are cuBLAS's, as most are on a card.
COMPILER_OPTIONS: dict[str, dict[str, str | bool]] = {"gpu": {"xla_gpu_enable_triton_gemm": False}}


class Target(NamedTuple):
    """`platform` as jax calls it, `device` of hardware.MACHINES or "cpu", `topology` as the
    platform's compiler takes it."""

    text: str
    platform: str
    device: str
    topology: str
    devices: int

    def environment(self) -> dict[str, str]:
        """For the process that compiles: it looks for no devices but, for cpu, simulated ones."""
        out = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
        if self.platform == "cpu":
            out["JAX_NUM_CPU_DEVICES"] = str(self.devices)
        return os.environ | out

    def make_devices(self) -> list[Any]:
        """The devices, which cannot compute; needs the `environment`."""
        import jax
        from jax.experimental import topologies

        here = jax.devices()  # which also finds the compilers that are installed
        if self.platform == "cpu":
            return here[: self.devices]
        if self.platform == "gpu":
            more = {"topology": self.topology, "target_config": _target_config(self.device)}
            return topologies.get_topology_desc("", platform="cuda", **more).devices
        return topologies.get_topology_desc(self.topology, platform="tpu").devices


def parse_target(text: str) -> Target:
    """What --compile=`text` means. Raises BadInput for what means nothing, and for a machine whose
    compiler is not installed."""
    kind, _, rest = text.partition(":")
    sizes = rest.rpartition(":")[2]
    is_grid = re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", sizes)
    numbers = [int(n) for n in sizes.split("x")] if is_grid else []
    count = math.prod(numbers)
    if kind == "cpu" and len(numbers) == 1 and rest == sizes:
        if count > MOST_CPUS:
            raise BadInput(f"--compile={text}: at most {MOST_CPUS} devices are simulated")
        return Target(text, "cpu", "cpu", "", count)
    if kind in CARDS and rest == sizes and len(numbers) in (1, 3):
        if len(numbers) == 1:
            nodes = max(1, count // NODE)
            numbers = [1, nodes, count // nodes]
            if count > NODE and count % NODE:
                raise BadInput(f"--compile={text}: {count} devices; expected a multiple of {NODE}")
        _check_installed(text, "cuda", "jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13")
        return Target(text, "gpu", kind, "x".join(map(str, numbers)), count)
    device = rest.partition(":")[0]
    if kind == "tpu" and TORUS.get(device) == len(numbers) and rest == f"{device}:{sizes}":
        _check_installed(text, "tpu", "libtpu")
        return Target(text, "tpu", device, rest, count)
    raise BadInput(f"--compile={text}: {EXPECTED}")


def _check_installed(text: str, extra: str, *modules: str) -> None:
    for name in modules:
        try:
            if importlib.util.find_spec(name):
                return
        except ModuleNotFoundError:  # of its package
            continue
    raise BadInput(
        f"--compile={text}: its compiler is not installed; no device is needed, but "
        f"`{install_command(extra)}` (Linux)"
    )


def _target_config(device: str) -> str:
    """A card as XLA's compiler takes it, in protobuf's text format."""
    kind = hardware.MACHINES[device].device_kinds[0]
    fields = " ".join(
        f"{name} {value}" if str(value).startswith("{") else f"{name}: {value}"
        for name, value in CARDS[device].items()
    )
    version = "dnn_version_info { major: 9 minor: 10 patch: 0 }"
    return (
        f'gpu_device_info {{ {fields} }} platform_name: "CUDA" {version} '
        f'device_description_str: "{kind}"'
    )
