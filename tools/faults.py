"""Inject every fault of the matrix and write the table of docs/reliability.md: what must hold, how
it was injected, what was seen, by which test.

  python -m tools.faults            everything; the page says how long it took
  python -m tools.faults --quick    what the default tests have; writes nothing

A test is a row of the matrix by the marker `fault`, and says what it saw by the fixture `seen`.
"""

import argparse
import datetime
import os
import platform
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- made by `make faults` -->", "<!-- end -->"
HEADER = (
    "| row | fault | what must hold | how it is injected | trials | seen | test |\n"
    + "|---" * 7
    + "|"
)


class FaultMatrix:
    """A pytest plugin that keeps the tests of the matrix and how they went."""

    def __init__(self) -> None:
        self.marks: dict[str, tuple] = {}
        self.outcomes: dict[str, tuple[str, list]] = {}
        self.seconds = 0.0

    def pytest_collection_modifyitems(self, config, items) -> None:
        mine = [item for item in items if item.get_closest_marker("fault")]
        config.hook.pytest_deselected(items=[item for item in items if item not in mine])
        items[:] = mine
        for item in mine:
            self.marks[item.nodeid] = item.get_closest_marker("fault").args

    def pytest_runtest_logreport(self, report) -> None:
        if report.when == "call" or report.outcome != "passed":
            trials = [value for name, value in report.user_properties if name == "seen"]
            self.outcomes[report.nodeid] = (report.outcome, trials)
        self.seconds += report.duration

    def format_table(self) -> str:
        """A line for each test, those of one function together."""
        functions: dict[tuple, list[str]] = {}
        for test in self.marks:
            functions.setdefault((*self.marks[test], test.partition("[")[0]), []).append(test)
        ordered = sorted(functions, key=lambda key: (int(key[0][1:].split("-")[0]), key[1:]))
        return "\n".join([HEADER, *(self.format_row(key, functions[key]) for key in ordered)])

    def format_row(self, key: tuple, tests: list[str]) -> str:
        row, fault, holds, how, name = key
        outcomes = [self.outcomes.get(test, ("not run", [])) for test in tests]
        passed = [pair for outcome, pairs in outcomes for pair in pairs if outcome == "passed"]
        trials = sum(count for count, _ in passed) or sum(o == "passed" for o, _ in outcomes)
        texts = list(dict.fromkeys(text for _, text in passed))
        if len(texts) > 1 and len({count for count, _ in passed}) > 1:  # the largest says it all
            trials, *texts = max(passed)
        texts += [f"**{outcome}**" for outcome, _ in outcomes if outcome != "passed"]
        file, _, function = name.partition("::")
        test = f"`{Path(file).name}` {function.removeprefix('test_').replace('_', ' ')}"
        cells = (row, fault, holds, how, trials, "; ".join(texts) or "held", test)
        return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def describe_hardware() -> str:
    """This machine and its versions, in a sentence."""
    from research.io import host, source

    known = host.describe() | source.describe()
    names = {line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")}
    versions = ", ".join(f"{name} {version}" for name, version in known["versions"].items())
    today = datetime.date.today().isoformat()
    return (
        f"On {today}, commit {str(known['commit'])[:12]}"
        f"{'+' * str(known['commit']).endswith('+')}, {os.getloadavg()[2]:.1f} processes at work: "
        f"{known['cores']} cores of "
        f"{', '.join(sorted(names)) or platform.machine()}, {host.memory() / 2**30:.0f} GB, "
        f"{platform.system()} {platform.release()}; {versions}."
    )


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(errors="replace").splitlines() if path.exists() else []


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="leave out what takes long")
    args = parser.parse_args()
    os.chdir(ROOT)
    matrix, began = FaultMatrix(), time.monotonic()
    chosen = ["-m", "fault and not slow" if args.quick else "fault"]
    code = pytest.main(
        ["-q", "--show-capture=no", "-p", "no:cacheprovider", *chosen], plugins=[matrix]
    )
    failed = [test for test, (outcome, _) in matrix.outcomes.items() if outcome == "failed"]
    minutes = (time.monotonic() - began) / 60
    passed = len(matrix.outcomes) - len(failed)
    print(f"{passed} of {len(matrix.marks)} passed, in {minutes:.1f} minutes")
    if not args.quick:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        after = rest.partition(END)[2]
        summary = f"{describe_hardware()} {len(matrix.outcomes)} tests in {minutes:.1f} minutes."
        PAGE.write_text(f"{before}{BEGIN}\n\n{summary}\n\n{matrix.format_table()}\n\n{END}{after}")
        print(f"written: {PAGE.relative_to(ROOT)}")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
