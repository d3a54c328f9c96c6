"""A trained run, opened to be used: needs neither its data nor its config."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from research import models
from research.errors import BadInput
from research.io import files
from research.models import Model
from research.runs import stored_state
from research.training.fine_tuning import find_run_directory, locate_checkpoint, read_model_fields


@dataclass(frozen=True)
class OpenedRun:
    """A run opened for use: its model, its parameters (the averaged ones where it has them), the
    JSON of its tokenizer ("": bytes), and its config."""

    path: Path
    step: int
    model: Model
    params: dict
    tokenizer: str
    config: dict

    @property
    def of_ids(self) -> bool:
        """Whether its text was ids, of which nothing tells the words."""
        data = self.config.get("data")
        path = str(data.get("path", "")) if isinstance(data, dict) else ""
        return path.endswith(".bin") and not self.tokenizer


def open_run(path: str | Path) -> OpenedRun:
    """A trained run (its directory, or the workdir of one run), ready to be used.

    Needs neither its data nor its config. Raises BadInput when there is none.
    """
    directory = find_run_directory(str(path))
    start = locate_checkpoint(str(directory), None, "params")
    model = built(read_model_fields(directory), directory / "launch.json")
    params = stored_state.read_arrays(start.path, start.part)
    config = files.read_json(directory / "config.json", follow=False)
    return OpenedRun(directory, start.step, model, params, start.tokenizer, config)


def built(fields: Mapping[str, Any], where: object) -> Model:
    """The model of these fields, which `where` has. Raises BadInput for what is none."""
    try:
        return models.build(**fields)
    except (TypeError, KeyError) as error:
        raise BadInput(f"{where}: not a model of this version") from error
    except ValueError as error:  # what a family says of its own numbers
        raise BadInput(f"{where}: model.{error}") from error
