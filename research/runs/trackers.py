"""Metrics shown elsewhere too: TensorBoard, Weights & Biases, MLflow.

metrics.jsonl is the record and is always written; a sink is a view of it. So a sink that fails is
dropped with a warning and the run goes on. Each writes below the run's directory or the workdir,
and nothing leaves the machine unless WANDB_MODE or MLFLOW_TRACKING_URI says so. A run that is
launched again goes on in the same place. TensorBoard and MLflow show no step twice; offline, W&B
keeps one folder for each launch, of one run id, with what each did.
"""

import contextlib
import importlib
import importlib.util
import logging
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from research.config.schema import flatten
from research.errors import BadInput
from research.io import files

log = logging.getLogger(__name__)

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}
SECONDS = 1.0  # that a sink may hold metrics back; a kill loses them, and only there

Config = Mapping[str, object]


class Sink(Protocol):
    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show `metrics` at `step`; steps never go back within a launch."""
        ...

    def close(self, result: Config | None) -> None:
        """End with the content of result.json, or None if the run is to be launched again."""
        ...


class Sinks:
    """Several sinks as one. One that raises is named in a warning, once, and gets no more."""

    def __init__(self, sinks: Mapping[str, Sink]):
        self.sinks = dict(sinks)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, sink in list(self.sinks.items()):
            if not _attempt(name, lambda sink=sink: sink.log(step, metrics)):
                del self.sinks[name]

    def close(self, result: Config | None = None) -> None:
        """Close what is still open; a second call finds nothing to do."""
        while self.sinks:
            name, sink = self.sinks.popitem()
            _attempt(name, lambda sink=sink: sink.close(result))


def check(names: Sequence[str]) -> None:
    """Raise BadInput for sinks that do not exist or lack their package; imports none of them."""
    problems = []
    for name in names:
        if name not in SINKS:
            problems.append(
                f"log.sinks: {name!r} is not offered; expected one of {', '.join(SINKS)}"
            )
        elif importlib.util.find_spec(PACKAGES[name]) is None:
            problems.append(
                f"log.sinks: {name} needs the package {PACKAGES[name]}, which is not installed; "
                "pip install isoflop[track]"
            )
    if problems:
        raise BadInput(*problems)


def open_all(
    names: Sequence[str], run_id: str, name: str, config: Config, directory: Path, workdir: Path
) -> Sinks:
    """The sinks `names` of a run, called `name` where people read. One that cannot be opened is
    dropped with a warning: the last run of a sweep must not fall with a server. Raises BadInput as
    `check` does."""
    check(names)
    flat = flatten(config)
    opened: dict[str, Sink] = {}

    def start(key: str) -> None:
        opened[key] = SINKS[key](run_id, name, flat, directory.absolute(), workdir.absolute())

    for key in dict.fromkeys(names):
        _attempt(key, lambda key=key: start(key))
    return Sinks(opened)


def _attempt(name: str, act: Callable[[], None]) -> bool:
    try:
        act()
    except Exception as error:  # whatever these packages raise, the run is worth more
        what = f"{type(error).__name__}: {error}"
        log.warning("%s gets no more of this run, metrics.jsonl does: %s", name, what)
        return False
    return True


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
        if _done(result):
            self._write(0, summary=self.end)
        self.writer.close()

    def _write(self, step: int, **content: object) -> None:
        self.writer.write_event(self.event(step=step, wall_time=time.time(), **content))


class Wandb:
    """Offline in `workdir`/wandb (then `wandb sync`), unless WANDB_MODE says otherwise. It is
    given config, metrics and result, and may not look for itself at console, code, git, machine."""

    def __init__(self, run_id: str, name: str, config: Config, directory: Path, workdir: Path):
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it would call home
        os.environ.setdefault("WANDB_CACHE_DIR", str(workdir / "wandb" / "cache"))  # logs, too
        import wandb

        quiet = ("disable_git", "disable_code", "x_disable_meta", "x_disable_stats")
        settings = dict.fromkeys((*quiet, "x_disable_machine_info", "silent"), True)
        settings |= {"console": "off", "x_save_requirements": False}
        settings |= {"x_transaction_log_flush_interval": SECONDS}
        # The time in a folder's name is in whole seconds; launches within one would overwrite.
        earlier = len(list(workdir.glob(f"wandb/*run-*-{run_id}-*")))
        settings |= {"x_sync_dir_suffix": f"{earlier:04d}"}
        self.run = wandb.init(
            id=run_id,
            resume="allow",
            name=name,
            project=os.environ.get("WANDB_PROJECT", "isoflop"),
            config=dict(config),
            dir=str(files.make_directory(workdir)),
            mode=os.environ.get("WANDB_MODE", "offline"),  # type: ignore[arg-type]
            reinit="create_new",  # a run of the caller's own stays as it is
            settings=settings,  # type: ignore[arg-type]
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.run.log(dict(metrics), step=step)

    def close(self, result: Config | None) -> None:
        self.run.summary.update(flatten(result or {}))
        self.run.finish(exit_code=0 if _done(result) else 1)


class MLflow:
    """`workdir`/mlflow.db, or the store of MLFLOW_TRACKING_URI; the run is found by its tag."""

    def __init__(self, run_id: str, name: str, config: Config, directory: Path, workdir: Path):
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it would call home
        local = f"sqlite:///{files.make_directory(workdir) / 'mlflow.db'}"
        with warnings.catch_warnings():  # of SQLAlchemy 2.1, about MLflow's own tables
            warnings.filterwarnings("ignore", "The ``noload`` loader", DeprecationWarning)
            from mlflow import MlflowClient, entities

            client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or local)
        self.entities, self.client = entities, client
        self.held, self.sent = [], time.monotonic()
        group = _experiment(client, workdir)
        found = client.search_runs([group], f"tags.`isoflop.run` = '{run_id}'", max_results=1)
        tags = {"isoflop.run": run_id}
        run = found[0] if found else client.create_run(group, run_name=name, tags=tags)
        self.id, known = run.info.run_id, run.data
        client.update_run(self.id, status="RUNNING")
        new = [entities.Param(k, str(v)) for k, v in config.items() if k not in known.params]
        client.log_batch(self.id, params=new)  # a param cannot be changed
        history = {k: client.get_metric_history(self.id, k) for k in known.metrics}
        self.last = {k: max(m.step for m in points) for k, points in history.items()}

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        new = {k: v for k, v in metrics.items() if step > self.last.get(k, -1)}
        self.held += [self.entities.Metric(k, v, now, step) for k, v in new.items()]
        if time.monotonic() - self.sent > SECONDS or len(self.held) > 500:  # of 1000 allowed
            self._send()

    def close(self, result: Config | None) -> None:
        """The numbers of the result become metrics `result.*`, all else becomes tags."""
        flat = {f"result.{k}": v for k, v in flatten(result or {}).items()}
        numbers = {k: float(v) for k, v in flat.items() if type(v) in (int, float)}  # type: ignore[arg-type]
        self.log(0, numbers)
        self._send([self.entities.RunTag(k, str(v)) for k, v in flat.items() if k not in numbers])
        ended = "FINISHED" if _done(result) else "FAILED" if result else "KILLED"
        self.client.set_terminated(self.id, ended)

    def _send(self, tags: Sequence[Any] = ()) -> None:
        self.client.log_batch(self.id, metrics=self.held, tags=tags)
        self.held, self.sent = [], time.monotonic()


def _experiment(client: Any, workdir: Path) -> str:
    from mlflow.exceptions import MlflowException

    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "isoflop")
    local = not os.environ.get("MLFLOW_TRACKING_URI")
    artifacts = (workdir / "mlflow-artifacts").as_uri() if local else None  # else ./mlruns
    if client.get_experiment_by_name(name) is None:
        with contextlib.suppress(MlflowException):  # another launch may make it at this moment
            client.create_experiment(name, artifact_location=artifacts)
    return client.get_experiment_by_name(name).experiment_id


def _done(result: Config | None) -> bool:
    return result is not None and result["status"] == "done"


Open = Callable[[str, str, Config, Path, Path], Sink]
SINKS: dict[str, Open] = {"tensorboard": TensorBoard, "wandb": Wandb, "mlflow": MLflow}
