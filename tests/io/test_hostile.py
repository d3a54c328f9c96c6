"""Files from elsewhere are refused by a typed error or do no harm: nothing runs, nothing outside
their folder is read or written, and memory stays bounded."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import payloads
import payloads_data  # noqa: F401 — adds to PAYLOADS
import pytest

from research.runs.directory import RunDirectory
from research.training.loop import train_run
from research.training.make_run import make_run

pytest.importorskip("safetensors")
TYPED = {"BadInput", "UnsafeFile", "Damaged", "StorageError", "Held"}
SECRET = json.dumps({"status": "done", "loss": 1.0, "name": "the secret of another"})
DATASETS = {"rows", "text", "images", "folder", "classes"}  # of which a key of a config is named
CARELESS = ("unpickles", "writes", "reads", "runs", "connects", "executes", "grows")


@pytest.fixture(scope="module")
def ends(tiny, tmp_path_factory):
    """Name -> how the opening of a payload ended (see opener.py), and the folder of them all."""
    top = tmp_path_factory.mktemp("hostile")
    run = make_run(tiny({"horizon.amount": 2.0}))
    with RunDirectory(top / "work", run.id) as directory:
        train_run(run, directory)
    named = {f"good {opener}": (opener, make) for opener, make in payloads.GOOD.items()}
    listed = []
    for number, (name, (opener, make)) in enumerate({**named, **payloads.PAYLOADS}.items()):
        place = payloads.Place(top / f"p{number}", top / f"outside/p{number}", directory.path)
        place.folder.mkdir()
        place.outside.mkdir(parents=True)
        (place.outside / "secret").write_text(SECRET)
        listed.append([name, opener, str(make(place))])
    for name in CARELESS:
        path = top / "careless" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(pickle.dumps(payloads.Evil(top / "outside" / "canary of the careless")))
        listed.append([name, "careless", str(path)])
    (top / "list.json").write_text(json.dumps(listed))
    argv = [sys.executable, str(Path(__file__).with_name("opener.py")), str(top)]
    root = str(Path(__file__).parents[2])
    made = subprocess.run(argv, env={**os.environ, "PYTHONPATH": root}, stderr=subprocess.PIPE)
    assert made.returncode == 0, made.stderr[-3000:]
    return json.loads((top / "seen.json").read_text()), top


def test_there_are_many():
    assert len(payloads.PAYLOADS) >= 100


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n == "run" else ()) for n in payloads.GOOD],
)
def test_a_good_file_is_opened(ends, name):
    """The twin of all the others: its opener opens."""
    assert ends[0][f"good {name}"]["end"] == "harmless", ends[0][f"good {name}"]["message"]


@pytest.mark.parametrize("name", CARELESS)
def test_what_none_may_do_would_be_seen(ends, name):
    found = ends[0][name]
    assert found["seen"] if name != "grows" else found["grown"] > 200


@pytest.mark.parametrize("name", payloads.PAYLOADS)
@pytest.mark.fault(
    "R18",
    "a hostile file",
    "a typed error or no harm: nothing runs, no other file is touched, less than 200 MB",
    "pickles, links, paths and odd headers in whatever is read, opened under an audit hook",
)
def test_a_payload_does_nothing(ends, name):
    found, opener = ends[0][name], payloads.PAYLOADS[name][0]
    assert found["end"] in {*TYPED, "harmless"}, found["message"]
    assert not found["seen"], found["seen"]
    assert found["grown"] < 200
    assert "the secret" not in found["message"]
    if found["end"] != "harmless" and opener in DATASETS:
        assert found["message"].startswith("data."), found["message"]
    if found["end"] != "harmless" and opener not in ("config", "table", "rows"):
        assert found["place"] in found["message"] or "parameter" in found["message"]


def test_no_canary_appears(ends):
    made = {path.name for path in (ends[1] / "outside").rglob("canary*")}
    assert made == {"canary of the careless"}
