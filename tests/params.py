"""Which cases of a test are slow ones."""

import pytest


def slow_but(often, values):
    """`values` as parameters, those that are not in `often` marked slow."""
    return [pytest.param(v, marks=[pytest.mark.slow] * (v not in often)) for v in values]
