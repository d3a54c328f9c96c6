import pytest


@pytest.fixture(scope="module", autouse=True)
def in_haste(barely_optimized):
    """For all tests of models."""
