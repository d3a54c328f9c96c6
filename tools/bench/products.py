"""One side of the machine's best product, in the interpreter that has the library.

python products.py numpy|torch|xla

A step is a product of two square matrices of float32 on all cores: by numpy's OpenBLAS, PyTorch's
MKL, or XLA, on a device for each core. This file needs nothing of Isoflop.
"""

import os
import sys

from turns import serve

SIDE = 1024
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def by_numpy():
    os.environ["OPENBLAS_NUM_THREADS"] = str(CORES)  # before the import
    import numpy as np

    x, out = np.full((SIDE, SIDE), 0.5, np.float32), np.empty((SIDE, SIDE), np.float32)
    return lambda: np.matmul(x, x, out=out), lambda _: None, 1


def by_torch():
    import torch

    torch.set_num_threads(CORES)
    x, out = torch.full((SIDE, SIDE), 0.5), torch.empty((SIDE, SIDE))
    return lambda: torch.mm(x, x, out=out), lambda _: None, 1


def by_xla():
    os.environ["JAX_NUM_CPU_DEVICES"] = str(CORES)
    import jax
    import jax.numpy as jnp

    mesh = jax.make_mesh((CORES,), ("all",), axis_types=(jax.sharding.AxisType.Auto,))
    lies = jax.sharding.PartitionSpec("all")
    product = jax.jit(
        jax.shard_map(lambda x: (x[0] @ x[0])[None], mesh=mesh, in_specs=lies, out_specs=lies)
    )
    x = jax.device_put(jnp.full((CORES, SIDE, SIDE), 0.5), jax.sharding.NamedSharding(mesh, lies))
    return lambda: product(x), jax.block_until_ready, CORES


def main() -> None:
    step, wait, products = {"numpy": by_numpy, "torch": by_torch, "xla": by_xla}[sys.argv[1]]()
    serve(step, wait, flops=2.0 * products * SIDE**3)


if __name__ == "__main__":
    main()
