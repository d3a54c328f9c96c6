"""Opens every payload as the commands would, under an audit hook; see test_hostile.py.

python opener.py FOLDER: FOLDER/list.json holds [name, opener, path]; the good ones come first and
load all that is loaded on first use, and from then on nothing may be run, no file be opened for
writing outside the payload's folder, and nothing at all be opened in FOLDER/outside. Prints JSON:
name -> {"end", "message", "seconds", "grown" (MB), "seen"}.
"""

import json
import os
import resource
import signal
import sys
import sysconfig
import time
import warnings
from pathlib import Path

TOP = Path(sys.argv[1]).resolve()
os.environ["ISOFLOP_CACHE"] = str(TOP / "cache")
os.environ["HF_HOME"] = str(TOP / "hf")
os.environ["HF_HUB_OFFLINE"] = "1"
HOME = tuple(
    os.path.realpath(p)
    for p in (sys.prefix, sys.base_prefix, sysconfig.get_path("purelib"), Path(__file__).parents[2])
)
FORBIDDEN = (
    *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork"),
    *("socket.connect", "socket.getaddrinfo", "pickle.find_class"),
)
armed, seen, own = False, [], TOP


def hook(event, args):
    if not armed:
        return
    if event == "open":
        path, mode, flags = (*args, None, None)[:3]
        if not isinstance(path, str | bytes | os.PathLike):
            return
        place = os.path.realpath(os.fsdecode(path))
        if (flags or 0) & os.O_NOFOLLOW:  # a link itself is opened, or refused
            folder, name = os.path.split(os.path.abspath(os.fsdecode(path)))
            place = os.path.join(os.path.realpath(folder), name)
        writes = (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or set("wax+") & set(
            mode or ""
        )
        if place.startswith(str(TOP / "outside")):
            seen.append(f"opened {place}")
        mine = place.startswith((str(own), str(TOP / "cache"), str(TOP / "hf")))
        if writes and not mine and place != os.devnull:
            seen.append(f"wrote {place}")
    elif event == "exec":
        if (code := args[0]) is not None and hasattr(code, "co_filename"):
            file = code.co_filename
            if not (file.startswith("<") or os.path.realpath(file).startswith(HOME)):
                seen.append(f"ran {file}")
    elif event.startswith(FORBIDDEN):
        seen.append(f"{event} {args!r:.80}")


def run(path):
    """As generate and a resumed launch open it."""
    from research.data import tokenizers
    from research.inference import generate
    from research.inference.load import open_run
    from research.runs import checkpoint, made_by, stored_state, trained_on

    trained_on.read(path)
    now = {"code": "1" * 12, "source": "1" * 12, "versions": {"jax": "1"}, "jax_config": {}}
    made_by.differences(made_by.latest(path, 1 << 60), now, path.parent.parent)
    made_by.summary(path)
    try:
        for step in checkpoint.saved_steps(path):
            where = path / "checkpoints" / str(step)
            checkpoint.latest_common_step([path])
            stored_state.read_arrays(where, "params")
            break
    finally:
        source = open_run(path)
    tokenizers.from_json(source.tokenizer)
    generate.generate(source.model, source.params, [1], 2)


def hold(path):
    from research.runs.directory import RunDirectory, write_data_card

    # A name that its maker could know: that of the temporary file of this process.
    with RunDirectory(path.parent.parent, path.name) as directory:
        for name in ("config.json", "late.json"):
            planted = path / f".{name}.{os.getpid()}.tmp"
            planted.symlink_to(TOP / "outside" / "canary")
            (path / name).unlink(missing_ok=True)
            directory.write_once(name, {"a": 1})
        directory.append(step=1, tokens=1, loss=1.0, seconds=0.0)
        directory.record_failure("because")
    write_data_card(path.parent.parent, "0" * 64, dict)


def results(path):
    from research.report import run_table
    from research.runs import metrics_log
    from research.runs.table import read_table

    rows = read_table(path.parent.parent)
    metrics_log.read_records(path)
    metrics_log.read_tail(path)
    for form in run_table.FORMATS.values():
        form(rows, run_table.select_columns(rows, "all"))


def config(path):
    from research.config.loading import load_config, validated

    validated(load_config(str(path))[0])


def sweep(path):
    from research.sweep import watch
    from research.sweep.points import read_points

    watch.format_line(watch.SweepMonitor(path.parent.parent, [path]).rows())
    read_points(path, path.parent.parent)


def table(path):
    from research.tables import table as runs

    runs.usable_rows(runs.read_runs(path), ["params", "tokens", "loss"])


def rows(path):
    from research import data

    options = {"columns": None, "kind": "classes", "standardize": False, "heldout": 0.25}
    data.load("table", path=str(path), target=["target"], **options)


def text(path):
    from research import data

    options = {"context": 8, "heldout": 0.2, "tokenizer": "bytes", "field": "text"}
    vocab = 9 if path.suffix == ".bin" else None
    data.load("text", path=str(path), vocab=vocab, **options)


def tokenizer(path):
    from research.data import tokenizers

    tokenizers.read(str(path)).encode("a text with e and e")


def images(path):
    from research import data

    options = {"examples": None, "resize": None, "shift": 0, "flip": False}
    data.load("images", path=str(path), heldout=0.3, **options)


def folder(path):
    from research import data

    options = {"subset": None, "split": "train", "field": "text", "documents": None, "context": 8}
    data.load("hub", path=str(path), heldout=0.2, tokenizer="bytes", vocab=None, **options)


def classes(path):
    from research import data

    options = {"field": "text", "label_field": "label", "classes": None, "examples": None}
    tokens = {"context": 8, "heldout": 0.2, "tokenizer": "bytes"}
    data.load("text_classes", path=str(path), **options, **tokens)


def exported(path):
    from research.inference import export

    export.open_export(path, bytes(32) if "sealed" in "".join(os.listdir(path)) else None)


def theirs(path):
    from research.inference import export

    export.open_export(f"hf:{path}")


def careless(path):
    """What none of the others may do, each to be seen."""
    import pickle
    import socket
    import subprocess

    match path.name:
        case "unpickles":
            pickle.loads(path.read_bytes())  # noqa: S301
        case "writes":
            (TOP / "elsewhere").write_text("")
        case "reads":
            (TOP / "outside" / "none").read_bytes()
        case "runs":
            subprocess.run(["true"], check=True)
        case "connects":
            socket.create_connection(("127.0.0.1", 9), 1)
        case "executes":
            exec(compile("1", str(path), "exec"))  # noqa: S102
        case "grows":
            bytearray(b"x") * (300 << 20)


def memory():
    """Bytes that this process has had at most, in MB, since `forget`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def forget():
    Path("/proc/self/clear_refs").write_text("5")


def late(*_):
    raise TimeoutError("hangs")


def opened(opener, path):
    global armed, own
    from research.errors import IsoflopError

    own = Path(path) if "runs" not in Path(path).parts else Path(path).parents[1]
    own = own if own.is_dir() else own.parent
    began = time.monotonic()
    signal.alarm(20)
    armed = armed_now
    try:
        OPENERS[opener](Path(path))
        end, message = "harmless", ""
    except IsoflopError as error:
        end, message = type(error).__name__, str(error)
    except BaseException as error:
        import traceback

        end, message = "untyped", "".join(traceback.format_exception(error))[-1500:]
    armed = False
    signal.alarm(0)
    return {"end": end, "message": message, "seconds": time.monotonic() - began}


OPENERS = {
    f.__name__: f
    for f in (
        *(run, hold, results, config, sweep, table, rows, text, tokenizer),
        *(images, folder, classes, exported, theirs, careless),
    )
}

if __name__ == "__main__":
    sys.addaudithook(hook)
    signal.signal(signal.SIGALRM, late)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    armed_now, out = False, {}
    for name, opener, path in json.loads((TOP / "list.json").read_text()):
        armed_now = not name.startswith("good ")
        seen.clear()
        forget()
        before = memory()
        out[name] = opened(opener, path) | {"grown": memory() - before, "seen": [*seen]}
        out[name]["place"] = f"{TOP}/{Path(path).relative_to(TOP).parts[0]}"
    (TOP / "seen.json").write_text(json.dumps(out))
