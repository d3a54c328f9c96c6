"""Files that somebody else might send: each payload is made below a folder of its own, beside a
folder `outside` that nothing may read or write. See test_hostile.py and opener.py.

A payload is a function (Place) -> what its opener is given. PAYLOADS maps its name to (opener,
function); GOOD maps every opener to the function of a file that it must open."""

import json
import os
import pickle
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path

from research.io import files
from research.runs import manifest, metrics_log, stored_state
from research.runs.table import _cache_header, _stamps

PAYLOADS, GOOD = {}, {}


@dataclass(frozen=True)
class Place:
    """`folder` is the payload's own, `outside` may not be touched, `run` is a good run to copy."""

    folder: Path
    outside: Path
    run: Path

    def write(self, name, content):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def pipe(self, name):
        """A pipe that nobody writes to."""
        os.mkfifo(self.folder / name)
        return self.folder / name

    def endless(self, name):
        """A file without an end."""
        (self.folder / name).symlink_to("/dev/zero")
        return self.folder / name

    def copied(self):
        """A workdir with a copy of the run, and the copy."""
        return Path(shutil.copytree(self.run, self.folder / "runs" / self.run.name))

    def step(self):
        run = self.copied()
        return run, stored_state.latest_intact(run)[1]


def payload(opener, name=None):
    def add(function):
        PAYLOADS[name or function.__name__] = (opener, function)
        return function

    return add


def good(opener):
    def add(function):
        GOOD[opener] = function
        return function

    return add


def relisted(step):
    """Whoever made the checkpoint could write the manifest, too."""
    listed = files.read_json(step / "manifest.json")
    listed["files"] = manifest.file_digests(step)
    listed["files"].pop("manifest.json")
    (step / "manifest.json").write_text(json.dumps(files.digested(listed)))


class Evil:
    """Unpickling it makes the canary."""

    def __init__(self, canary):
        self.canary = str(canary)

    def __reduce__(self):
        return (open, (self.canary, "w"))


def evil(place):
    return pickle.dumps(Evil(place.outside / "canary"))


def deep(depth=200_000):
    return "[" * depth + "]" * depth


LONG = "9" * 5000


# Checkpoints: copies of a run, changed.


@good("run")
def _(place):
    return place.copied()


def at_step(name):
    """A payload that changes the newest step of a run."""

    def add(function):
        def make(place):
            run, step = place.step()
            function(place, step)
            return run

        PAYLOADS[name] = ("run", make)
        return function

    return add


def largest(step):
    return max(
        (p for p in (step / "state").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )


@at_step("a state that is a link")
def _(place, step):
    os.rename(step / "state", place.outside / "state")
    (step / "state").symlink_to(place.outside / "state")


@at_step("an array file that is a link")
def _(place, step):
    file = largest(step)
    os.rename(file, place.outside / "array")
    file.symlink_to(place.outside / "array")


@at_step("an array file that is a hard link to a secret")
def _(place, step):
    file = largest(step)
    file.unlink()
    os.link(place.outside / "secret", file)


@at_step("a step that is a link")
def _(place, step):
    os.rename(step, place.outside / "step")
    step.symlink_to(place.outside / "step")


@payload("run", "checkpoints that are a link")
def _(place):
    run = place.copied()
    os.rename(run / "checkpoints", place.outside / "checkpoints")
    (run / "checkpoints").symlink_to(place.outside / "checkpoints")
    return run


@at_step("a pipe among the files")
def _(place, step):
    file = largest(step)
    file.unlink()
    os.mkfifo(file)


@at_step("a manifest that is a pipe")
def _(place, step):
    (step / "manifest.json").unlink()
    os.mkfifo(step / "manifest.json")


@at_step("a socket among the files")
def _(place, step):
    here = os.getcwd()
    os.chdir(step / "state")  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("s")
    os.chdir(here)


@at_step("a pickle beside the files")
def _(place, step):
    (step / "state" / "more.pkl").write_bytes(evil(place))


@at_step("a pickle in place of the array database")
def _(place, step):
    (step / "state" / "manifest.ocdbt").write_bytes(evil(place))
    relisted(step)


@at_step("a file that is missing")
def _(place, step):
    largest(step).unlink()


@at_step("folders a hundred deep")
def _(place, step):
    here = os.getcwd()
    os.chdir(step / "state")
    for _ in range(100):
        os.mkdir("x")
        os.chdir("x")
    os.chdir(here)


def listing(name, change):
    """A manifest that says something else."""

    @at_step(name)
    def _(place, step):
        listed = files.read_json(step / "manifest.json")
        changed = change(place, listed)
        text = changed if isinstance(changed, str) else json.dumps(files.digested(changed))
        (step / "manifest.json").write_text(text)


def first_leaf(listed, known):
    listed["leaves"][next(k for k in listed["leaves"] if k.startswith("params/"))] = known
    return listed


def escaping(name):
    def change(place, listed):
        digest = files.digest_file(place.outside / "secret")
        size = (place.outside / "secret").stat().st_size
        listed["files"][name.format(outside=place.outside)] = [size, digest]
        return listed

    return change


listing("a manifest that names ../", escaping("../../../../../outside/secret"))
listing("a manifest that names an absolute path", escaping("{outside}/secret"))
listing("a leaf of 4 TB", lambda _, m: first_leaf(m, [[1 << 40], "float32"]))
listing("a leaf of another shape", lambda _, m: first_leaf(m, [[3, 3], "float32"]))
listing("a leaf of another dtype", lambda _, m: first_leaf(m, [[16], "O"]))
listing("a leaf of negative shape", lambda _, m: first_leaf(m, [[-1, -1], "float32"]))
listing("a leaf that is text", lambda _, m: first_leaf(m, "float32"))
listing("leaves that are a list", lambda _, m: m | {"leaves": [1, 2]})
listing("files that are a list", lambda _, m: m | {"files": []})
listing("a manifest that is deep", lambda *_: '{"files": ' + deep() + "}")
listing("a manifest with a number of 5,000 digits", lambda *_: '{"step": ' + LONG + "}")
listing("a manifest with NaN", lambda *_: '{"files": {}, "leaves": {}, "step": NaN}')
listing("a manifest with a key twice", lambda *_: '{"files": {}, "files": {}, "leaves": {}}')
listing("a manifest that is a list", lambda *_: "[]")


@at_step("metadata that are deep")
def _(place, step):
    (step / "state" / "_METADATA").write_text(deep())
    relisted(step)


@at_step("metadata with __class__ and a path for a key")
def _(place, step):
    path = step / "state" / "_METADATA"
    found = json.loads(path.read_text())
    found["use_ocdbt"] = False
    found["__class__"] = "os.system"
    key = next(iter(found["tree_metadata"]))
    entry = found["tree_metadata"].pop(key)
    entry["key_metadata"][-1]["key"] = "../../../../../../outside/array"
    entry["value_metadata"]["value_type"] = "subprocess.Popen"
    found["tree_metadata"]["('../../outside/array',)"] = entry
    path.write_text(json.dumps(found))
    relisted(step)


@at_step("handlers named by a dotted name")
def _(place, step):
    path = step / "state" / "_CHECKPOINT_METADATA"
    found = json.loads(path.read_text()) | {"item_handlers": "os.system", "custom": deep(100)}
    path.write_text(json.dumps(found))
    relisted(step)
    (step / "state" / "_METADATA").write_text("{}")
    relisted(step)


@payload("run", "a step of two hundred digits")
def _(place):
    run, step = place.step()
    os.rename(step, step.with_name("9" * 200))
    return run


@payload("run", "a step in digits that are no number")
def _(place):
    run, step = place.step()
    os.rename(step, step.with_name("²"))
    return run


def launched(name, change):
    @payload("run", name)
    def _(place):
        run = place.copied()
        path = run / "launch.json"
        path.write_text(json.dumps(change(json.loads(path.read_text()))))
        return run


launched("a model by a dotted name", lambda m: m | {"model": m["model"] | {"name": "os.system"}})
launched(
    "a model with __class__",
    lambda m: m | {"model": m["model"] | {"__class__": "os.system", "__init__": "x"}},
)
launched(
    "a dtype that is code", lambda m: m | {"model": m["model"] | {"dtype": "__import__('os')"}}
)
launched("a model that is wider", lambda m: m | {"model": m["model"] | {"width": 1 << 30}})
launched("a model of text", lambda m: m | {"model": m["model"] | {"width": "16", "depth": []}})
launched("a model that is a list", lambda m: m | {"model": [1]})


launched("a training set that lies elsewhere", lambda m: m | {"trained_on": ["../../outside/a"]})
launched("training sets that are a number", lambda m: m | {"trained_on": 3})


launched("code that lies elsewhere", lambda m: m | {"source": "../../outside/secret"})
launched("code and settings that are lists", lambda m: m | {"code": [1], "jax_config": {"a": [1]}})


def listed(name, plant):
    @payload("run", name)
    def _(place):
        run = place.copied()
        launch = json.loads((run / "launch.json").read_text()) | {"source": "0" * 12}
        (run / "launch.json").write_text(json.dumps(launch))
        (place.folder / "code").mkdir(exist_ok=True)
        plant(place, "code/000000000000.json")
        return run


listed("a list of code that is a pipe", lambda place, name: place.pipe(name))
listed("a list of code without an end", lambda place, name: place.endless(name))
listed("a list of code of numbers", lambda place, name: place.write(name, '{"files": 3}'))
listed("a list of code nested deeply", lambda place, name: place.write(name, "[" * 200_000))


def continued(name, plant):
    @payload("run", name)
    def _(place):
        run = place.copied()
        plant(place, f"runs/{run.name}/continued.json")
        return run


continued("launches that are a pipe", lambda place, name: place.pipe(name))
continued("launches without an end", lambda place, name: place.endless(name))
continued("launches of text", lambda place, name: place.write(name, '{"launches": ["x"]}'))
continued(
    "a launch of odd types",
    lambda place, name: place.write(
        name,
        '{"launches": [{"step": 1, "accepted": [{}], "told": [[]], "made_by": {"code": {}}}]}',
    ),
)


def trained_on(name, plant):
    @payload("run", name)
    def _(place):
        run = place.copied()
        launch = json.loads((run / "launch.json").read_text()) | {"trained_on": ["0" * 12]}
        (run / "launch.json").write_text(json.dumps(launch))
        (place.folder / "data").mkdir()
        plant(place, "data/000000000000.contents")
        return run


trained_on("a training set that is a pipe", lambda place, name: place.pipe(name))
trained_on("a training set without an end", lambda place, name: place.endless(name))
trained_on("a training set of odd bytes", lambda place, name: place.write(name, b"x" * 13))
trained_on("a training set too large", lambda place, name: place.write(name, bytes(9 << 20)))
trained_on(
    "a training set that is a link",
    lambda place, name: (place.folder / name).symlink_to(place.outside / "secret"),
)


@payload("run", "a tokenizer that is a link")
def _(place):
    run = place.copied()
    (run / "tokenizer.json").symlink_to(place.outside / "secret")
    return run


@payload("run", "a tokenizer that is a pickle")
def _(place):
    run = place.copied()
    (run / "tokenizer.json").write_bytes(evil(place))
    return run


# Directories that a launch would write into.


@good("hold")
def _(place):
    return place.copied()


def planted(name, link, to="canary"):
    @payload("hold", name)
    def _(place):
        run = place.copied()
        path = run / link if not link.startswith("../") else place.folder / link[3:]
        if path.is_dir() and not path.is_symlink():
            shutil.move(path, place.outside / "moved")
        path.unlink(missing_ok=True)
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(place.outside / to)
        return run


planted("a lock that is a link", ".lock")
planted("metrics that are a link", "metrics.jsonl")
planted("attempts that are a link", "attempts", "")
planted("leases that are a link", "lease", "")
planted("a folder of data that is a link", "../data", "")
planted("figures that are a link", "../figures", "")
planted("a folder of sweeps that is a link", "../sweeps", "")


@payload("hold", "a run that is a link")
def _(place):
    run = place.copied()
    shutil.move(run, place.outside / "run")
    run.symlink_to(place.outside / "run")
    return run


@payload("hold", "a run by a path")
def _(place):
    return Path(f"{place.folder}/runs/..%2F..%2Foutside")


# Results.


@good("results")
def _(place):
    return place.copied()


def result(name, content, file="result.json"):
    @payload("results", name)
    def _(place):
        run = place.copied()
        path = run / file
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        content(place, path) if callable(content) else path.write_text(content)
        return run


result("a result with NaN", '{"status": "done", "loss": NaN}')
result("a result with Infinity", '{"status": "done", "loss": -Infinity}')
result("a result beyond all numbers", '{"status": "done", "loss": 1e999}')
result("a result that is deep", '{"status": ' + deep() + "}")
result("a result with 5,000 digits", '{"status": "done", "loss": 1, "params": ' + LONG + "}")
result("a result with a key twice", '{"status": "done", "status": "failed", "loss": 1}')
result("a result of wrong types", '{"status": "done", "loss": "1", "params": {}, "versions": 3}')
result("a result of another status", '{"status": {"__class__": "os.system"}, "loss": 1}')
result("a result with half a confusion", json.dumps(
    {"status": "done", "loss": 1, "accuracy": 1, "confusion": [[1], [2, 3]], "class_names": "ab"}
))  # fmt: skip
result("a result that is a pickle", lambda place, path: path.write_bytes(evil(place)))
result("a result that is a link", lambda place, path: path.symlink_to(place.outside / "secret"))
result("a result that is a pipe", lambda place, path: os.mkfifo(path))
result("metrics that are a pipe", lambda place, path: os.mkfifo(path), "metrics.jsonl")
result("metrics from outside", lambda place, path: path.symlink_to(place.outside / "secret"),
       "metrics.jsonl")  # fmt: skip
result("metrics of odd records", lambda place, path: path.write_bytes(
    b"".join(
        metrics_log.encode_record(r)
        for r in ({"step": "x"}, {"resume": []}, {"step": 1, "loss": "y"}, {})
    )
    + deep().encode() + b"\n" + b'{"step": 1, "loss": NaN, "crc": 0}\n[1]\n' + b"\xff\xfe\n"
), "metrics.jsonl")  # fmt: skip
result("metrics in a line of 64 MB", lambda _, path: path.write_bytes(b" " * (64 << 20)),
       "metrics.jsonl")  # fmt: skip
result("attempts by odd names", lambda _, path: [
    path.with_name(n).write_text("{}") for n in ("x.json", "²³.json", "1.json", "9" * 99 + ".json")
], "attempts/1.json")  # fmt: skip
result("a lease of odd names", lambda _, path: [
    path.with_name(n).write_text(deep()) for n in ("9x.json", "²³.json", "77.json")
], "lease/77.json")  # fmt: skip
result("a lease that is a pipe", lambda _, path: os.mkfifo(path), "lease/88.json")


@payload("results", "a cache of the table that lies")
def _(place):
    run = place.copied()
    rows = json.dumps({run.name: [_stamps(str(run)), {"run": "../x", "status": 7}]}).encode()
    place.write(".table.cache", _cache_header(rows) + b"\n" + rows)
    return run


@payload("results", "a cache of the table that is deep")
def _(place):
    run, rows = place.copied(), deep().encode()
    place.write(".table.cache", _cache_header(rows) + b"\n" + rows)
    return run


# Configs.


@good("config")
def _(place):
    return place.write("config.json", (place.run / "config.json").read_bytes())


def config(name, change, suffix="json"):
    @payload("config", name)
    def _(place):
        base = json.loads((place.run / "config.json").read_text())
        made = change(place, base)
        made = json.dumps(made) if isinstance(made, dict) else made
        return place.write(f"config.{suffix}", made)


config("a config with __class__", lambda _, c: c | {"__class__": {"__init__": "os.system"}})
config(
    "a config with a dotted name", lambda _, c: c | {"model": c["model"] | {"name": "os.system"}}
)
config(
    "a config with !!python",
    lambda *_: "!!python/object/apply:os.system ['touch canary']",
    "yaml",
)
config(
    "a config with a path for a plug",
    lambda _, c: c | {"data": c["data"] | {"name": "../../outside/evil"}},
)
config("a config of konfig", lambda _, c: c | {"model": {"__qualname__": "os:system", "0": "true"}})
config("a config that is deep", lambda *_: '{"name": ' + deep() + "}")
config("a config with 5,000 digits", lambda *_: '{"seed": ' + LONG + "}")
config("a config with NaN", lambda _, c: json.dumps(c | {"seed": float("nan")}))
config("a config with a key twice", lambda *_: '{"seed": 1, "seed": 2}')
config("a config of 2 MB", lambda _, c: json.dumps(c | {"name": "x" * (2 << 20)}))
config("a config that is a pickle", lambda place, _: evil(place))
config("a config that is no text", lambda *_: b"\xff\xfe\x00")


@payload("config", "a config that is a pipe")
def _(place):
    return place.pipe("config.json")


@payload("config", "a config that is a device")
def _(place):
    return place.endless("config.json")


# Sweeps, as a worker reads them.


@good("sweep")
def _(place):
    facts = dict.fromkeys(("params", "tokens", "flops", "steps", "seed", "lr", "context"), 1)
    base = json.loads((place.run / "config.json").read_text())
    point = {
        "run": place.run.name,
        "overrides": {},
        "config": base,
        "facts": facts,
        "ignored_failures": 0,
    }
    return place.write("sweeps/s.json", json.dumps({"points": [point], "grouping": "auto"}))


def sweep(name, change):
    @payload("sweep", name)
    def _(place):
        made = json.loads(GOOD["sweep"](place).read_text())
        made = change(made["points"][0]) or made
        return place.write("sweeps/s.json", made if isinstance(made, str) else json.dumps(made))


sweep("a sweep whose run is a path", lambda p: p.update(run="../../outside"))
sweep("a sweep whose facts are text", lambda p: p["facts"].update(flops="x"))
sweep("a sweep without configs", lambda p: p.pop("config") and None)
sweep("a sweep of no points", lambda p: '{"points": 3, "grouping": "auto"}')
sweep("a sweep that is deep", lambda p: '{"points": ' + deep() + "}")
