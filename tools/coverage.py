"""How often 95 % intervals contain the truth, over simulated tables with a known law.

  python -m tools.coverage --tables=1000

Two kinds of table: nine runs of different sizes (least squares, profile likelihood), and sixty runs
on a grid of sizes and tokens (Huber's loss, profile likelihood). Noise is 1 % of the loss.
"""

import argparse
import math
import multiprocessing
import os
import time

import numpy as np

SMALL = np.array([14e3, 26e3, 42e3, 42e3, 42e3, 108e3, 179e3, 415e3, 857e3])
POWER = {"E": 1.4, "A": 32.0, "alpha": 0.4}
SURFACE = {"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.37}
NOISE = 0.01


def small(seed: int) -> dict[str, bool]:
    rng = np.random.default_rng(seed)
    loss = POWER["E"] + POWER["A"] / SMALL ** POWER["alpha"]
    loss = loss * np.exp(NOISE * rng.standard_normal(len(SMALL)))
    rows = [{"run": str(i), "params": n, "loss": y} for i, (n, y) in enumerate(zip(SMALL, loss))]
    return covered("power", rows, POWER)


def surface(seed: int) -> dict[str, bool]:
    rng = np.random.default_rng(seed)
    rows = []
    for n in np.geomspace(5e7, 1e10, 10):
        for ratio in np.geomspace(2, 200, 6):
            d = ratio * n
            loss = SURFACE["E"] + SURFACE["A"] / n ** SURFACE["alpha"]
            loss = (loss + SURFACE["B"] / d ** SURFACE["beta"]) * np.exp(
                NOISE * rng.standard_normal()
            )
            rows.append({"run": str(len(rows)), "params": n, "tokens": d, "loss": loss})
    return covered("chinchilla", rows, SURFACE)


def covered(name: str, rows: list, truth: dict[str, float]) -> dict[str, bool]:
    from research.scaling import Fit, Options, named_law, split_rows

    law, options = named_law(name), Options()
    intervals = Fit(law, split_rows(law, rows, options), options).reported_intervals()
    return {
        key: (intervals[key][0] or 0)
        <= value
        <= (math.inf if (h := intervals[key][1]) is None else h)
        for key, value in truth.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=int, default=1000)
    count = parser.parse_args().tables
    for kind in (small, surface):
        began = time.monotonic()
        with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
            results = pool.map(kind, range(count), chunksize=5)
        shares = {key: np.mean([f[key] for f in results]) for key in results[0]}
        words = ", ".join(f"{key} {share:.1%}" for key, share in shares.items())
        print(f"{kind.__name__}: {count} tables in {time.monotonic() - began:.0f} s: {words}")


if __name__ == "__main__":
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    main()
