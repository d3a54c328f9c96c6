"""MLflow."""

import contextlib
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from research.config.schema import flatten
from research.io import files
from research.runs.trackers import FLUSH_SECONDS, Config, is_done


class MLflow:
    """`workdir`/mlflow.db, or the store of MLFLOW_TRACKING_URI; the run is found by its tag."""

    def __init__(self, run_id: str, name: str, config: Config, directory: Path, workdir: Path):
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it would call home
        local = f"sqlite:///{_plain(files.make_directory(workdir)) / 'mlflow.db'}"
        with warnings.catch_warnings():  # of SQLAlchemy 2.1, about MLflow's own tables
            warnings.filterwarnings("ignore", "The ``noload`` loader", DeprecationWarning)
            from mlflow import MlflowClient, entities

            client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or local)
        self.entities, self.client = entities, client
        self.buffered, self.sent = [], time.monotonic()
        group = _experiment(client, workdir)
        existing = client.search_runs([group], f"tags.`isoflop.run` = '{run_id}'", max_results=1)
        tags = {"isoflop.run": run_id}
        run = existing[0] if existing else client.create_run(group, run_name=name, tags=tags)
        self.id, known = run.info.run_id, run.data
        client.update_run(self.id, status="RUNNING")
        new = [entities.Param(k, str(v)) for k, v in config.items() if k not in known.params]
        client.log_batch(self.id, params=new)  # a param cannot be changed
        history = {k: client.get_metric_history(self.id, k) for k in known.metrics}
        self.last = {k: max(m.step for m in points) for k, points in history.items()}

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        new = {k: v for k, v in metrics.items() if step > self.last.get(k, -1)}
        self.buffered += [self.entities.Metric(k, v, now, step) for k, v in new.items()]
        if (
            time.monotonic() - self.sent > FLUSH_SECONDS or len(self.buffered) > 500
        ):  # of 1000 allowed
            self._send()

    def close(self, result: Config | None) -> None:
        """The numbers of the result become metrics `result.*`, all else becomes tags."""
        flat = {f"result.{k}": v for k, v in flatten(result or {}).items()}
        numbers = {k: float(v) for k, v in flat.items() if type(v) in (int, float)}  # type: ignore[arg-type]
        self.log(0, numbers)
        self._send([self.entities.RunTag(k, str(v)) for k, v in flat.items() if k not in numbers])
        ended = "FINISHED" if is_done(result) else "FAILED" if result else "KILLED"
        self.client.set_terminated(self.id, ended)

    def _send(self, tags: Sequence[Any] = ()) -> None:
        self.client.log_batch(self.id, metrics=self.buffered, tags=tags)
        self.buffered, self.sent = [], time.monotonic()


def _plain(folder: Path) -> Path:
    """The folder, by a link where its path has signs that a URI reads as its own: MLflow would keep
    the database of `sweep?lr=1` in a file called `sweep`."""
    if not set("?%#") & set(str(folder)):
        return folder
    link = files.cache("mlflow") / files.digest(os.fsencode(folder))[:16]
    with contextlib.suppress(FileExistsError):  # an earlier launch made it
        link.symlink_to(folder.absolute(), target_is_directory=True)
    return link


def _experiment(client: Any, workdir: Path) -> str:
    from mlflow.exceptions import MlflowException

    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "isoflop")
    local = not os.environ.get("MLFLOW_TRACKING_URI")
    artifacts = (workdir / "mlflow-artifacts").as_uri() if local else None  # else ./mlruns
    if client.get_experiment_by_name(name) is None:
        with contextlib.suppress(MlflowException):  # another launch may make it at this moment
            client.create_experiment(name, artifact_location=artifacts)
    return client.get_experiment_by_name(name).experiment_id
