"""What it takes to train one run: which of the library's code is loaded, and how often a run is
put together."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from research.config.loading import validated
from research.io import source
from research.sweep.points import resolve_points
from research.sweep.worker import check_points, run_worker
from research.training.progress import Progress
from research.training.trainer import Trainer

ROOT = Path(__file__).parents[2]
# Lines of research/ that training the shipped language model loads. It may only fall: where it
# has, lower it.
LINES = 7898
SLACK = 150
ELSEWHERE = ("planning", "scaling", "report", "launch", "sweep", "inference")

CODE = """
import json, runpy, sys
for name in {first!r}:
    __import__(name)
sys.argv = ["train", *{flags!r}]
try:
    runpy.run_module("experiments.train", run_name="__main__")
except SystemExit as stop:
    assert not stop.code, stop.code
files = {{n: m.__file__ for n, m in sys.modules.items() if n.split(".")[0] == "research"}}
print(json.dumps(files))
"""


def loaded(tmp_path, corpus, first=()):
    """{module: lines} of research/ in a process that has trained the shipped language model."""
    flags = ["--config=configs/lm_transformer.py", f"--workdir={tmp_path}"]
    changes = {"data.path": corpus, "horizon.unit": "steps", "horizon.amount": 2}
    changes |= {"eval.examples": 8, "model.width": 16, "model.heads": 2, "model.kv_heads": 2}
    changes |= {"model.hidden": 32, "model.depth": 1, "size": "none"}
    flags += [f"--config.{key}={value}" for key, value in changes.items()]
    code = CODE.format(first=list(first), flags=flags)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    files = json.loads(done.stdout.splitlines()[-1])
    files.pop("research.io.git_diff", None)  # which only a checkout with changes needs
    return {name: len(Path(file).read_text().splitlines()) for name, file in files.items()}


def elsewhere(modules):
    return [name for name in modules if name.split(".")[1:2] and name.split(".")[1] in ELSEWHERE]


@pytest.fixture(scope="module")
def lines(tmp_path_factory, corpus):
    return loaded(tmp_path_factory.mktemp("path"), corpus)


def test_training_loads_little_and_nothing_of_planning_or_analysis(lines):
    assert not elsewhere(lines)
    total = sum(lines.values())
    assert total <= LINES, f"the train path has grown to {total} lines"
    assert total > LINES - SLACK, f"the train path has {total} lines: lower LINES"


def test_every_module_that_training_loads_is_known_to_be(lines):
    """A record names the code of these (research/io/source.py), by a static list."""
    training = source.library().training
    paths = {name: f"{name.replace('.', '/')}.py" for name in lines}
    unknown = [n for n, p in paths.items() if not {p, p[:-3] + "/__init__.py"} & training]
    # What only the command loads, of which nothing reaches a step.
    assert set(unknown) <= {"research.config.cli", "research.config.process_flags",
                            "research.config.stop_signal", "research.config.loading"}  # fmt: skip


@pytest.mark.slow
def test_what_training_should_not_load_is_seen(tmp_path, corpus):
    """The twin of both."""
    assert elsewhere(loaded(tmp_path, corpus, first=["research.planning.memory"]))


@pytest.fixture
def trainers(monkeypatch):
    """The ids of the runs for which a Trainer is made."""
    made, original = [], Trainer.__init__

    def init(self, run, mesh):
        made.append(run.id)
        original(self, run, mesh)

    monkeypatch.setattr(Trainer, "__init__", init)
    return made


def test_one_trainer_is_made_for_a_launch(trainers, tiny, tmp_path):
    from experiments import train

    path = tmp_path / "config.json"
    path.write_text(json.dumps(tiny()))
    assert train.main([f"--config={path}", f"--workdir={tmp_path / 'w'}"]) == 0
    assert len(trainers) == 1


def test_one_trainer_is_made_for_each_run_of_a_worker(trainers, tiny, tmp_path):
    configs = [({"seed": seed}, validated(tiny({"seed": seed}))) for seed in (0, 1)]
    points = resolve_points(configs, tmp_path)
    check_points(points, tmp_path)
    assert not trainers
    with Progress(p.run.facts for p in points) as progress:
        run_worker(points, tmp_path, progress, lambda: False)
    assert sorted(trainers) == sorted(p.run.id for p in points)
