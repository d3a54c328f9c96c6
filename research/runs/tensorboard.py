"""TensorBoard: event files in the directory of the run."""

import importlib
import importlib.util
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from research.io import files
from research.runs.trackers import Config, is_done


class TensorBoard:
    """Event files in `directory`/tensorboard, with the config as hparams.

    Writes in this thread: tensorboardX's own writer dies unseen when the disk is full, then blocks,
    and holds back two minutes of events that a kill would lose.
    """

    def __init__(self, run_id: str, name: str, config: Config, directory: Path, workdir: Path):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.summary import hparams

        folder = files.make_directory(directory / "tensorboard")
        number = len(list(folder.glob("*.tfevents.*")))  # the time in a name is in whole seconds
        self.event: Any = importlib.import_module("tensorboardX.proto.event_pb2").Event
        self.writer = EventsWriter(str(folder / "events"), f".{number:04d}")
        plain = {k: str(v) if isinstance(v, list | tuple) else v for k, v in config.items()}
        *self.begin, self.end = hparams(plain, {"loss": 0.0})

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if self.begin:  # START hides what an earlier launch wrote from this step on
            self._write(step, session_log={"status": "START"})
            for summary in self.begin:
                self._write(step, summary=summary)
            self.begin = []
        values = [{"tag": k, "simple_value": v} for k, v in metrics.items()]
        self._write(step, summary={"value": values})
        self.writer.flush()

    def close(self, result: Config | None) -> None:
        if is_done(result):
            self._write(0, summary=self.end)
        self.writer.close()

    def _write(self, step: int, **content: object) -> None:
        self.writer.write_event(self.event(step=step, wall_time=time.time(), **content))
