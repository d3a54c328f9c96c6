"""orbax, which writes and reads the arrays of a state."""

from typing import Any

from research.params import leaves_by_path


def checkpointer() -> Any:
    ocp = orbax()
    return ocp.Checkpointer(ocp.StandardCheckpointHandler())


def orbax() -> Any:
    """orbax, imported on first use: it takes half a second, in which a new run trains already."""
    import orbax.checkpoint

    return orbax.checkpoint


def shapes_and_dtypes(state: Any) -> dict[str, list]:
    return {path: [list(x.shape), str(x.dtype)] for path, x in leaves_by_path(state).items()}
