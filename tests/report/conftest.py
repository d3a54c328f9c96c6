import pytest

from research.scaling import multiverse


@pytest.fixture(autouse=True, scope="module")
def one_objective():
    """Half of a page's time is the multiverse, whose objectives tests/scaling tries."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiverse, "OBJECTIVES", multiverse.OBJECTIVES[1:2])
        yield
