"""Commands whose output is in another encoding, is read by nobody, or is closed from the start, and
commands of users who have no home."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.__main__ import COMMANDS
from research.io import files, home

ROOT = Path(__file__).parents[2]
PATHS = os.environ | {"PYTHONPATH": str(ROOT)}
NARROW = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "latin-1": {"PYTHONIOENCODING": "latin-1:strict"},
}
SAYS = """
import logging, sys
from research.config import cli
from research.errors import BadInput

def main(argv):
    print("R² = 0.9 ± 0.1, 10 → 20")
    logging.getLogger("research.any").warning("x² → y")
    if argv:
        raise {"typed": BadInput, "io": OSError, "other": RuntimeError}[argv[0]]("no ± \\udcff")

cli.run(main)
"""
MANY = """
import sys
from research.config import cli, stop_signal

def main(argv):
    if argv[0] == "needed":
        stop_signal.StopSignal()
    for number in range(3_000):
        print("a line of output", number)
        if argv[1:-1]:
            print("a line of errors", number, file=sys.stderr)
    open(argv[-1], "w").write("ended")

cli.run(main)
"""


@pytest.fixture
def says(tmp_path):
    """A file, since an argument is read in the encoding of the locale."""
    (tmp_path / "says.py").write_text(SAYS)
    return tmp_path / "says.py"


def command(*argv, **how):
    how = {"capture_output": True, "cwd": ROOT, "check": False, "timeout": 120, **how}
    return subprocess.run([sys.executable, *argv], **how)


@pytest.mark.parametrize("encoding", NARROW)
@pytest.mark.parametrize("kind", ["", "typed", "io", "other"])
def test_what_an_encoding_lacks_is_escaped(encoding, kind, says):
    code = {"": 0, "typed": 2, "io": 74, "other": 1}[kind]
    done = command(says, *[kind] * bool(kind), env=PATHS | NARROW[encoding])
    assert done.returncode == code, done.stderr
    arrow = rb"\u2192"
    assert arrow in done.stdout
    assert arrow in done.stderr
    assert (b"0.9 \xb1 0.1" if encoding == "latin-1" else rb"0.9 \xb1 0.1") in done.stdout
    assert b"UnicodeEncodeError" not in done.stderr
    assert (b"Traceback" in done.stderr) == (kind == "other")


def test_where_the_encoding_has_all_nothing_is_escaped(says):
    done = command(says, env=PATHS | {"PYTHONIOENCODING": "utf-8"})
    assert done.stdout.decode() == "R² = 0.9 ± 0.1, 10 → 20\n"
    assert done.stderr.decode() == "x² → y\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_its_help_in_ascii(name):
    said = [
        command("-m", f"experiments.{name}", "--help", env=os.environ | {"PYTHONIOENCODING": kind})
        for kind in ("ascii", "utf-8")
    ]
    assert [done.returncode for done in said] == [0, 0], said[0].stderr
    narrow, wide = (done.stdout.decode() for done in said)
    assert len(narrow) >= len(wide) > 100
    assert narrow.isascii()


def read_a_line_of(*argv):
    """The exit code and the errors of a command of whose output one line is read."""
    with subprocess.Popen(
        [sys.executable, *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    ) as child:
        assert child.stdout.readline()
        child.stdout.close()
        errors = child.stderr.read()
    return child.returncode, errors.decode()


def test_a_command_ends_when_nobody_reads_it(tmp_path):
    code, errors = read_a_line_of("-c", MANY, "not", tmp_path / "end")
    assert (code, errors) == (141, "")
    assert not (tmp_path / "end").exists()


def test_a_command_that_trains_goes_on_when_nobody_reads_it(tmp_path):
    code, errors = read_a_line_of("-c", MANY, "needed", tmp_path / "end")
    assert code == 0, errors
    assert "Error" not in errors
    assert (tmp_path / "end").read_text() == "ended"


@pytest.mark.parametrize("needed", ["needed", "not"])
def test_errors_that_nobody_reads_end_nothing(needed, tmp_path):
    unread, end = os.pipe()
    os.close(unread)
    with open(os.devnull, "w") as out:
        done = command("-c", MANY, needed, tmp_path / "x", tmp_path / "end",
                       capture_output=False, stdout=out, stderr=end)  # fmt: skip
    os.close(end)
    assert done.returncode == 0
    assert (tmp_path / "end").read_text() == "ended"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize(("needed", "code"), [("needed", 0), ("not", 74)])
def test_output_on_a_full_disk(needed, code, tmp_path):
    with open("/dev/full", "w") as full:
        done = command("-c", MANY, needed, tmp_path / "end",
                       capture_output=False, stdout=full, stderr=subprocess.PIPE)  # fmt: skip
    assert done.returncode == code, done.stderr
    assert (tmp_path / "end").exists() == (code == 0)
    assert done.stderr == (b"" if not code else b"error: I/O: No space left on device\n")


def test_a_pipe_that_is_full_and_does_not_block_ends_no_training(tmp_path):
    unread, end = os.pipe()
    os.set_blocking(end, False)
    done = command("-c", MANY, "needed", tmp_path / "x", tmp_path / "end",
                   capture_output=False, stdout=end, stderr=end)  # fmt: skip
    os.close(end)
    os.close(unread)
    assert done.returncode == 0
    assert (tmp_path / "end").read_text() == "ended"


CLOSED = """
import os, sys
from research.config import cli

def main(argv):
    print("said")
    with open(argv[0], "w") as file:
        file.write("content")
        file.flush()
        print("said", file=sys.stderr)
        os.write(2, b"by a handler of signals")

os.closerange(0, 3)
sys.stdin = sys.stdout = sys.__stdout__ = sys.stderr = sys.__stderr__ = None
cli.run(main)
"""


def test_no_file_takes_the_place_of_a_closed_output(tmp_path):
    assert command("-c", CLOSED, tmp_path / "file").returncode == 0
    assert (tmp_path / "file").read_text() == "content"


# Without HOME and without an entry of this user among the accounts of the machine.
NOBODY = """
import os, pwd, runpy, sys
def nobody(*_):
    raise KeyError("getpwuid(): uid not found")
pwd.getpwuid = pwd.getpwnam = nobody
for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "ISOFLOP_CACHE", "XDG_CACHE_HOME"):
    os.environ.pop(name, None)
os.environ.update(HOMES)
sys.argv[0] = "isoflop"
runpy.run_module("experiments.__main__", run_name="__main__")
"""


HOMES = {
    "none": {},
    "one that cannot be made": {"HOME": "/proc/none"},
    "one that is a file": {"HOME": os.devnull},
}


def as_nobody(tmp_path, *argv, **environ):
    """A command of a user who has no home but what `environ` says."""
    folder = tmp_path / "tmp"
    folder.mkdir(exist_ok=True)
    env = os.environ | {"TMPDIR": str(folder)}
    unset = ("MPLCONFIGDIR", "XDG_CONFIG_HOME", "JAX_COMPILATION_CACHE_DIR")
    env = {k: v for k, v in env.items() if k not in unset}
    code = NOBODY.replace("HOMES", repr(environ))
    return command("-c", code, *argv, env=env, text=True), folder / f"isoflop-{os.getuid()}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "homes",
    HOMES.values(),
    ids=HOMES.keys(),
)
def test_a_user_without_a_home_trains_and_reports(homes, tmp_path, tiny):
    (tmp_path / "config.json").write_text(files.indented(tiny({"horizon.amount": 2.0})))
    work = f"--workdir={tmp_path / 'work'}"
    done, substitute = as_nobody(
        tmp_path, "train", f"--config={tmp_path}/config.json", work, **homes
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(f"caches are in {substitute}") == 1
    assert substitute.stat().st_mode & 0o777 == 0o700
    assert list(substitute.glob(".cache/isoflop/programs/*"))
    done, _ = as_nobody(tmp_path, "report", work.replace("workdir", "runs"), **homes)
    assert "Traceback" not in done.stderr
    assert done.returncode == 0, done.stderr
    assert not (ROOT / "~").exists()


def test_a_substitute_that_is_anothers_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(home.tempfile, "tempdir", str(tmp_path))
    name = tmp_path / f"isoflop-{os.getuid()}"

    def open_to_all():
        name.mkdir()
        name.chmod(0o755)  # whatever the umask

    for plant in (lambda: name.symlink_to("/"), open_to_all, name.touch):
        plant()
        home.substitute_home.cache_clear()
        folder = home.substitute_home()
        assert folder != name
        assert folder.stat().st_mode & 0o777 == 0o700
        name.unlink() if not name.is_dir() or name.is_symlink() else name.rmdir()
    home.substitute_home.cache_clear()
    assert home.substitute_home() == name
    home.substitute_home.cache_clear()


def test_a_cache_that_was_chosen_is_the_one_or_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("ISOFLOP_CACHE", os.devnull)
    with pytest.raises(files.StorageError, match=re.escape(f"{os.devnull}: cannot be made")):
        files.cache("x")
