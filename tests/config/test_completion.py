"""The shell completes commands, their flags, keys of a config and files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = "import sys; sys.argv[0] = 'isoflop'; from experiments.__main__ import script; script()"


def completed(line):
    """What may end the line, as a shell would ask."""
    pytest.importorskip("argcomplete")
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "IFS": "\n"}
    asked |= {"COMP_TYPE": "9", "_ARGCOMPLETE_COMP_WORDBREAKS": " \n=", "_ARGCOMPLETE_IFS": "\n"}
    command = ["sh", "-c", 'exec 8>&1; exec "$@"', "sh", sys.executable, "-c", CODE]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **asked}
    )
    return {word.strip() for word in done.stdout.splitlines() if word.strip()}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("isoflop tr", {"train", "transfer"}),
        ("isoflop train --wo", {"--workdir"}),
        ("isoflop fit --predict", {"--predict", "--predict_flops"}),
        ("isoflop train --config.init.r", {"--config.init.run"}),
        ("isoflop train --config=configs/linea", {"configs/linear.py"}),
        ("isoflop nothing --wo", set()),
    ],
)
def test_a_line_is_completed(line, words):
    assert completed(line) == words


def test_keys_are_those_of_configs_and_not_of_their_meanings():
    found = completed("isoflop train --config.model.")
    assert "--config.model.width" in found
    assert not [word for word in found if "cnn" in word]


def test_a_shell_gets_its_script_and_another_word_is_refused():
    command = [sys.executable, "-m", "experiments", "--completion={}"]

    def run(shell):
        words = [*command[:-1], command[-1].format(shell)]
        return subprocess.run(words, capture_output=True, text=True, cwd=ROOT)

    refused = run("ksh")
    assert refused.returncode == 2
    assert "--completion=ksh: expected one of bash, zsh, fish" in refused.stderr
    pytest.importorskip("argcomplete")
    for shell in ("bash", "zsh", "fish"):
        assert "isoflop" in run(shell).stdout
    assert run("fish").stdout != run("bash").stdout
