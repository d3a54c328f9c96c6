"""What accelerators can do at most, from what their makers print. Nothing here was measured by us.

Rates are of dense products (no sparsity) in FLOP/s, bandwidths in bytes/s and one direction, of one
device. `node` devices are joined by `within`; to other nodes each has `between`.
"""

from collections.abc import Mapping
from typing import NamedTuple

from research.errors import BadInput


class Machine(NamedTuple):
    """`fused`: attention is one kernel that never writes its map. `sources` are document titles."""

    rates: Mapping[str, float]
    memory: float
    bandwidth: float
    node: int
    within: float
    between: float
    fused: bool
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
        fused=True,
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
        fused=True,
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
        fused=True,
        sources=(
            "NVIDIA A100 80GB Tensor Core GPU Datasheet: SXM, BF16 312 and TF32 156 TFLOPS, 80 GB, "
            "2,039 GB/s, NVLink 600 GB/s (both directions)",
            "NVIDIA DGX A100 System User Guide: 8 GPUs, one 200 Gb/s ConnectX-6 port for each",
        ),
    ),
    "cpu": Machine(  # one core: XLA has one device for each
        rates={"bfloat16": 211.2e9, "float32": 211.2e9},
        memory=12e9,
        bandwidth=9e9,
        node=64,
        within=9e9,
        between=0.78e9,
        fused=False,
        sources=(
            "AMD EPYC 9575F product page: 64 cores of 3.3 GHz (base), 12 channels of DDR5-6000 "
            "(576 GB/s)",
            "AMD EPYC 9005 Processor Architecture Overview: two 512-bit FMA pipes, 64 float32 "
            "FLOPs in a cycle",
            "assumed, not printed: 768 GB and one 400 Gb/s port for 64 cores",
        ),
    ),
}


def machine(name: str) -> Machine:
    """Raises BadInput naming the machines that there are."""
    if name not in MACHINES:
        raise BadInput(f"--device={name}: not in the table; expected one of {', '.join(MACHINES)}")
    return MACHINES[name]
