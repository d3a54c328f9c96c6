"""What a block keeps for the backward pass (activation checkpointing, Chen et al. 2016): everything
else is computed once more."""

from collections.abc import Callable
from typing import Any

import jax


def policy(saved: str) -> Callable[..., Any]:
    """ "dots", matmul outputs without the attention maps, which grow as T²; "projections", those of
    the attention alone; "offload", the same and the block's input, in the memory of the host (on
    CPU, in its own); "full", only the block's input."""
    keep = jax.checkpoint_policies
    if saved == "offload":
        return keep.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=["block_input", "projection"],
            offload_src="device",
            offload_dst="pinned_host",
        )
    return {
        "dots": keep.dots_with_no_batch_dims_saveable,
        "projections": keep.save_only_these_names("projection"),
        "full": keep.nothing_saveable,
    }[saved]
