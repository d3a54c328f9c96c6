"""Weights & Biases."""

import os
from collections.abc import Mapping
from pathlib import Path

from research.config.schema import flatten
from research.io import files
from research.runs.trackers import FLUSH_SECONDS, Config, is_done


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
        settings |= {"x_transaction_log_flush_interval": FLUSH_SECONDS}
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
        self.run.finish(exit_code=0 if is_done(result) else 1)
