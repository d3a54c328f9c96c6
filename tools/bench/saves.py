"""How long training waits for its checkpoints, with and without `save.asynchronous`.

  python -m tools.bench.saves --data=FILE.txt --workdir=DIR [--size=5e7] [--steps=12]

Trains a language model of so many parameters on blocks of 64 tokens and saves it every third step;
prints what the loop waited for each save and what the run took, in turn for both ways.
"""

import argparse
import shutil
import tempfile
import time

from research.config import validation
from research.config.loading import load_config, validated
from research.parallel import jax_settings
from research.runs.directory import RunDirectory
from research.training import watchdog
from research.training.loop import train_run
from research.training.make_run import make_run

CHANGES = {"batch.size": 4, "horizon.unit": "steps", "eval.every": 0, "eval.examples": 8}
CHANGES |= {"eval.batch": 8, "save.every": 3, "save.keep": 1, "loop.steps_per_dispatch": 3}


def measure(args: argparse.Namespace, asynchronous: bool) -> None:
    config, _ = load_config("configs/lm_transformer.py")
    changes = CHANGES | {"size": args.size, "data.path": args.data, "data.context": 64}
    changes |= {"horizon.amount": float(args.steps), "save.asynchronous": asynchronous}
    config, problems = validation.override(config, changes)
    assert not problems, problems
    run, folder = make_run(validated(config)), tempfile.mkdtemp(dir=args.workdir)
    began = time.perf_counter()
    with watchdog.watching(), RunDirectory(folder, run.id) as directory:
        train_run(run, directory)
        assert watchdog._active
        waited = list(watchdog._active.past["checkpoint"])
    took = time.perf_counter() - began
    shutil.rmtree(folder)
    each = " ".join(f"{seconds:.1f}" for seconds in waited)
    way, size = "asynchronous" if asynchronous else "synchronous", f"{run.facts['params']:,}"
    print(
        f"{way:12} {size} params: waited {sum(waited):.1f} s ({each}) of {took:.1f} s", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--size", type=float, default=5e7)
    parser.add_argument("--steps", type=int, default=12)
    args = parser.parse_args()
    jax_settings.prepare()
    for asynchronous in (False, True, False, True):
        measure(args, asynchronous)


if __name__ == "__main__":
    main()
