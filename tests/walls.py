"""Which package of `research/` may import which, and what each holds.

`tests/test_imports.py` holds the code to this table, and `python -m tests.walls` prints it in
CONTRIBUTING.md. `package.part` is one module of a package.
"""

from pathlib import Path

# package: (what it holds, the packages that it may import)
WALLS: dict[str, tuple[str, str]] = {
    "errors": ("typed errors and exit codes", ""),
    "params": ("parameters by path", "errors"),
    "io": ("files, tables, encryption, the host", "errors"),
    "config": ("what a valid config is, and the command line", "io errors"),
    "models": ("the families, their layers, sizes and FLOPs", "config.types params errors"),
    "data": ("text, images and tables on the host; the order of examples",
             "io config.types errors"),
    "parallel": ("the mesh, several processes, the compile cache", "io params errors"),
    "runs": ("a run's directory and what is in it; the table of runs",
             "parallel.distributed config.schema io params errors"),
    "training": ("a config becomes a run, and a run is trained",
                 "models data parallel runs config io params errors "),
    "planning": ("memory, time and machines before anything is trained",
                 "training models data.placeholder parallel config params io errors"),
    "launch": ("where workers run: here, local, Ray, Slurm",
               "config.process_flags io.host io.extras errors"),
    "tables": ("tables of runs as people have them, read and checked",
               "runs.table runs.settings io errors"),
    "scaling": ("from a table of runs to a law", "tables io errors"),
    "report": ("figures, tables and the page", "scaling tables runs io errors"),
    "sweep": ("the points of a sweep: planned, trained, watched, verified",
              "training planning launch runs scaling tables models.sizing parallel config io "
              "errors"),
    "inference": ("a trained model, used, scored and handed on",
                  "training.fine_tuning training.pretrained models data runs "
                  "config.stored_model io params errors"),
}  # fmt: skip
NO_JAX = (
    *("errors", "io", "config", "data", "launch", "tables", "scaling", "report", "sweep.watch"),
    *("sweep.limits", "sweep.plan_text", "sweep.sweep_file"),
    *(
        "runs.directory",
        "runs.ladder",
        "runs.tracking",
        "runs.table",
        "runs.metrics_log",
        "runs.row_checks",
        "runs.schema",
        "runs.settings",
        "runs.lease",
        "runs.trackers",
    ),
    *("training.progress", "training.watchdog"),
    *("runs.scores", "inference.suite_items", "inference.chosen_runs"),
)
# Inside training: module -> the modules of training that it may import, where that is few.
INSIDE = {
    "training.step": "gradient_accumulation internals optimizers schedules spike_skipping tasks "
    "transfer",
    "training.gradient_accumulation": "",
    "training.trainer": "run step optimizers fine_tuning closed_form evaluation_sets internals",
    "training.internals": "tasks",
    "training.make_run": "run execution horizon horizon_rules fine_tuning heldout_check "
    "evaluation_sets moments optim_paths optimizers schedules step tasks transfer",
    "training.run": "execution evaluation_sets fine_tuning optimizers schedules step tasks "
    "transfer",
    "training.evaluation_sets": "",
    "training.losses": "",
    "training.chunked_losses": "",
    "training.schedules": "",
    "training.optimizers": "schedules",
    "training.muon": "optimizers",
    "training.transfer": "muon optimizers",
    "training.optim_paths": "transfer",
    "training.moments": "",
    "training.tasks": "",
    "training.language_modeling": "losses chunked_losses tasks",
    "training.masked_language_modeling": "language_modeling losses",
    "training.classification": "losses tasks",
    "training.regression": "tasks",
    "training.execution": "",
    "training.horizon": "",
    "training.horizon_rules": "horizon",
}
# What of config/ a module of training may import besides its types: only these read a config.
READ_CONFIG = (
    *("training.make_run", "training.resume", "training.horizon_rules", "training.fine_tuning"),
    "training.pretrained",
)
SLACK = 1.15  # what the table permits, over what the code uses

PAGE = Path(__file__).parents[1] / "CONTRIBUTING.md"
BEGIN, END = "<!-- printed by `python -m tests.walls` -->", "<!-- end of the walls -->"


def markdown_table() -> str:
    """The table of CONTRIBUTING.md: packages, what they hold, what they may import."""
    lines = ["| package | what it holds | may import |", "|---|---|---|"]
    for room, (contents, allowed) in WALLS.items():
        cells = (f"`{room}`", contents, " ".join(f"`{name}`" for name in allowed.split()) or "–")
        lines.append(f"| {' | '.join(cells)} |")
    without_jax = ", ".join(f"`{name}`" for name in NO_JAX)
    return "\n".join([*lines, "", f"These import no jax: {without_jax}."])


def with_table(page: str) -> str:
    """The text of a page whose block between BEGIN and END is the table of today. Raises
    ValueError if the page has no such block."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"no block between {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{markdown_table()}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
