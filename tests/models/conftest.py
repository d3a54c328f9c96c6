"""What a function computes and what is counted hold whatever LLVM makes of them: it need not try."""

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def barely_optimized():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()  # or a later test would run what was compiled here
