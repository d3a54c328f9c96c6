"""The values of jax.config that decide results: set here and nowhere else, and recorded."""

import logging
import os
from typing import Any

import jax

from research.io import host, source
from research.parallel import compile_cache, device_mesh

log = logging.getLogger(__name__)

# What a random number and a float are. No shell decides it: a variable that asks for something else
# has no effect, and is named.
FIXED = {
    "jax_enable_x64": False,
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_enable_custom_prng": False,
    "jax_random_seed_offset": 0,
    "jax_high_dynamic_range_gumbel": False,
}
# How exactly and in which order it is computed: as jax or the user's environment has it. Promotion
# of dtypes and ranks is an error or the same numbers.
FREE = (
    *("jax_default_matmul_precision", "jax_numpy_dtype_promotion", "jax_numpy_rank_promotion"),
    *("jax_disable_jit", "jax_optimization_level", "jax_exec_time_optimization_effort"),
    *("jax_memory_fitting_effort", "jax_memory_fitting_level", "jax_compiler_enable_remat_pass"),
    *("jax_enable_pgle", "jax_use_direct_linearize", "jax_softmax_custom_jvp"),
    *("jax_threefry_gpu_kernel_lowering", "jax_use_shardy_partitioner"),
)
VARIABLES = ("NVIDIA_TF32_OVERRIDE", "LIBTPU_INIT_ARGS")  # which other libraries obey


def prepare(alone: bool = True) -> None:
    """What a command that trains does before the first use of jax. Raises BadInput if there are no
    devices, which a process that is not `alone` may not look for yet."""
    source.library()  # as it is now: what is edited later is not what is loaded here
    fix()
    device_mesh.use_all_cpu_cores()
    compile_cache.enable_compile_cache()
    if alone:
        device_mesh.check_devices()


def fix() -> None:
    """Give jax.config the values of FIXED, and name what the environment had instead."""
    for name, value in FIXED.items():
        if (there := getattr(jax.config, name, value)) != value:  # of another version, none
            log.warning("%s=%s has no effect: it is always %s here", name.upper(), there, value)
            jax.config.update(name, value)


def describe() -> dict[str, Any]:
    """What this process makes runs with, as they record it: what `host` and `source` say,
    {"jax_config": {name: value}}, and the devices: {"platform", "device_kind", "device_count"}.
    For when jax's devices may be used."""
    names = [name for name in (*FIXED, *FREE) if hasattr(jax.config, name)]
    values = {name: _plain(getattr(jax.config, name)) for name in names}
    values |= {name: os.environ[name] for name in VARIABLES if name in os.environ}
    device, count = jax.devices()[0], jax.device_count()
    devices = {"platform": device.platform, "device_kind": device.device_kind}
    made = {**host.describe(), **source.describe(), "jax_config": values}
    return {**made, **devices, "device_count": count}


def _plain(value: object) -> object:
    return value if isinstance(value, bool | int | float | None) else str(value)
