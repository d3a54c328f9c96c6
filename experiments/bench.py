"""Time the training loop of a config on this machine, data loading and host overhead included.

python -m experiments.bench --config=configs/lm_gpt2.py --config.batch.size=16 [--json]
python -m experiments.bench [--json]         a table of the shipped cases, one process each

No run is written. The docstring of research/planning/benchmark.py defines each number.
"""

import json
import subprocess
from collections.abc import Sequence
from typing import Any

from research.config import cli
from research.config.loading import validated
from research.errors import DONE
from research.io import host


def _gpt2(width: int, layers: int, batch: int) -> tuple[str, ...]:
    shape = (f"model.width={width}", f"model.depth={layers}", f"model.hidden={4 * width}")
    return ("configs/lm_gpt2.py", *shape, f"batch.size={batch}")


# Each is a config and its overrides; of GPT-2's shape: width / layers / batch.
CASES = {
    "tiny 32/2/8": _gpt2(32, 2, 8),
    "GPT-2 64/2/16": _gpt2(64, 2, 16),
    "GPT-2 128/4/16": _gpt2(128, 4, 16),
    "GPT-2 256/4/8": _gpt2(256, 4, 8),
    "GRU 128/2/16": ("configs/lm_gru.py", "size=none", "model.width=128", "model.depth=2"),
    "CNN, batch 64": ("configs/cnn_digits.py",),
}


def flags(case: Sequence[str]) -> list[str]:
    return [f"--config={case[0]}", *(f"--config.{change}" for change in case[1:])]


def main(argv: Sequence[str]) -> int:
    parser = cli.config_parser(__doc__, required=False)
    parser.add_argument("--json", action="store_true", help="print one line of JSON only")
    parser.add_argument("--blocks", type=int, default=10, help="number of timed blocks")
    parser.add_argument("--seconds", type=float, default=0.5, help="approximate length of a block")
    args, config, _ = cli.parse_config(parser, argv)
    timed = [f"--blocks={args.blocks}", f"--seconds={args.seconds}"]
    if args.config is None:
        return measure_cases(timed, args.json)
    config = validated(config, args.config)

    from research.parallel import jax_settings
    from research.planning import benchmark  # jax from here on
    from research.training.make_run import make_run

    jax_settings.prepare()
    measurement = benchmark.measure(make_run(config), args.blocks, args.seconds)
    print(json.dumps(measurement) if args.json else benchmark.format_measurement(measurement))
    return 0


def measure_cases(timed: Sequence[str], as_json: bool) -> int:
    """The table of CASES; the exit code of the first that fails."""
    measurements: dict[str, Any] = {}
    for name, case in CASES.items():
        command = [*host.command("bench"), *flags(case), *timed, "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode != DONE:
            return done.returncode
        measurements[name] = json.loads(done.stdout)

    from research.planning import benchmark

    print(json.dumps(measurements) if as_json else benchmark.markdown_table(measurements))
    return 0


if __name__ == "__main__":
    cli.run(main)
