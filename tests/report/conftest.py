import pytest

from research.scaling import multiverse


@pytest.fixture(autouse=True)
def one_objective(monkeypatch):
    """Half of a page's time is the multiverse, whose objectives tests/scaling tries."""
    monkeypatch.setattr(multiverse, "OBJECTIVES", multiverse.OBJECTIVES[1:2])
