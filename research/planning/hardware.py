"""Hardware data sheets: what accelerators can do at most, from what their makers print. Nothing
here was measured by us.

Rates are of dense products (no sparsity) in FLOP/s, bandwidths in bytes/s and one direction, of one
device. `node` devices are joined by `within`; to other nodes each has `between`.
"""

from collections.abc import Mapping
from typing import NamedTuple

from research.errors import BadInput


class Machine(NamedTuple):
    """`platform` is jax's word. `device_kinds`: what the driver, and so jax's `device_kind`, calls
    exactly these. `sources` are document titles."""

    rates: Mapping[str, float]
    memory: float
    bandwidth: float
    node: int
    within: float
    between: float
    platform: str
    device_kinds: tuple[str, ...]
    sources: tuple[str, ...]

    def rate(self, dtype: str) -> float:
        return self.rates[dtype]


# Of the memory, what a run may fill: the rest is the driver's, the collectives' and fragments'.
# (XLA itself takes three quarters unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.)
USABLE = 0.9

MACHINES: dict[str, Machine] = {
    "h100": Machine(
        # float32 products run as TF32 by default. The sheet's rates are with sparsity, twice these.
        rates={"bfloat16": 989.4e12, "float32": 494.7e12},
        memory=80e9,
        bandwidth=3.35e12,
        node=8,
        within=450e9,
        between=50e9,
        platform="gpu",
        device_kinds=("NVIDIA H100 80GB HBM3",),
        sources=(
            "NVIDIA H100 Tensor Core GPU Datasheet: SXM, BF16 1,979 and TF32 989 TFLOPS with "
            "sparsity, 80 GB, 3.35 TB/s, NVLink 900 GB/s (both directions)",
            "NVIDIA DGX H100 System User Guide: 8 GPUs, one 400 Gb/s ConnectX-7 port for each",
        ),
    ),
    "h200": Machine(
        rates={"bfloat16": 989.4e12, "float32": 494.7e12},
        memory=141e9,
        bandwidth=4.8e12,
        node=8,
        within=450e9,
        between=50e9,
        platform="gpu",
        device_kinds=("NVIDIA H200",),
        sources=(
            "NVIDIA H200 Tensor Core GPU Datasheet: SXM, BF16 1,979 and TF32 989 TFLOPS with "
            "sparsity, 141 GB, 4.8 TB/s, NVLink 900 GB/s (both directions)",
            "NVIDIA DGX H200 System User Guide: 8 GPUs, one 400 Gb/s ConnectX-7 port for each",
        ),
    ),
    "a100": Machine(
        rates={"bfloat16": 312e12, "float32": 156e12},
        memory=80e9,
        bandwidth=2.039e12,
        node=8,
        within=300e9,
        between=25e9,
        platform="gpu",
        device_kinds=("NVIDIA A100-SXM4-80GB",),
        sources=(
            "NVIDIA A100 80GB Tensor Core GPU Datasheet: SXM, BF16 312 and TF32 156 TFLOPS, 80 GB, "
            "2,039 GB/s, NVLink 600 GB/s (both directions)",
            "NVIDIA DGX A100 System User Guide: 8 GPUs, one 200 Gb/s ConnectX-6 port for each",
        ),
    ),
    # A TPU's product of float32 is one pass in bfloat16 unless jax is told otherwise. `within`: all
    # links of a chip at once, which only a mesh axis over the whole slice uses; `node` is a pod.
    "v5e": Machine(
        rates={"bfloat16": 197e12, "float32": 197e12},
        memory=16e9,
        bandwidth=819e9,
        node=256,
        within=200e9,
        between=3.125e9,
        platform="tpu",
        device_kinds=("TPU v5 lite",),
        sources=(
            "Google Cloud, TPU v5e: 197 TFLOPS in bf16, 16 GB, 819 GB/s, ICI 400 GB/s (both "
            "directions), pods of 256; a host of 8 chips has 2 x 100 Gb/s",
        ),
    ),
    "v5p": Machine(
        rates={"bfloat16": 459e12, "float32": 459e12},
        memory=95e9,
        bandwidth=2.765e12,
        node=8960,
        within=600e9,
        between=6.25e9,
        platform="tpu",
        device_kinds=("TPU v5", "TPU v5p"),
        sources=(
            "Google Cloud, TPU v5p: 459 TFLOPS in bf16, 95 GB, 2,765 GB/s, ICI 1,200 GB/s (both "
            "directions), pods of 8,960; 50 Gb/s of the data center's network for a chip",
        ),
    ),
    "v6e": Machine(
        rates={"bfloat16": 918e12, "float32": 918e12},
        memory=32e9,
        bandwidth=1.638e12,
        node=256,
        within=400e9,
        between=12.5e9,
        platform="tpu",
        device_kinds=("TPU v6 lite", "TPU v6e"),
        sources=(
            "Google Cloud, TPU v6e: 918 TFLOPS in bf16, 32 GB, 1,638 GB/s, ICI 800 GB/s (both "
            "directions), pods of 256; a host of 8 chips has 4 x 200 Gb/s",
        ),
    ),
}


def machine_named(name: str) -> Machine:
    """The machine of --device=`name`. Raises BadInput naming those with a data sheet."""
    if name not in MACHINES:
        raise BadInput(
            f"--device={name}: a plan is a bound from data sheets, and there is none for it; "
            f"expected one of {', '.join(MACHINES)} (experiments.bench measures the devices here)"
        )
    return MACHINES[name]


def machine_of_kind(device_kind: str) -> Machine | None:
    """The machine of a jax device; None where no data sheet here is of exactly that card. Cards of
    one name differ: an H100 for PCIe has about three quarters of the rate of one for SXM."""
    return next((m for m in MACHINES.values() if device_kind in m.device_kinds), None)
