"""Learning rates x widths, with a rule of transfer and without, as a sweep: where the optimum of
every width lies, and what the transferred rate costs at the largest."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from research.config import validation
from research.config.loading import validated
from research.errors import BadInput
from research.runs.table import read_row
from research.scaling import analyze, rate_optima
from research.sweep import launcher, transfer
from research.sweep.launcher import LaunchOptions
from research.sweep.points import Outcome, Point, describe_status, locate_points, resolve_configs

RULES = ("rule", "standard")
Train = Callable[[Sequence[Point]], Outcome]


class _Unfinished(Exception):
    """Runs that a stage needs are not done; `missing` says, by run id, why."""

    def __init__(self, missing: Mapping[str, str]):
        super().__init__(f"{len(missing)} runs are missing")
        self.missing = missing


@dataclass(frozen=True)
class Rates:
    """What a sweep varies: widths, ascending, and learning rates as multiples of the config's; and
    how many fresh seeds the candidates of the regret have."""

    widths: tuple[int, ...]
    factors: tuple[float, ...]
    seeds: int


def launcher_of(
    workdir: Path, stop: Callable[[], bool], options: LaunchOptions, show: Callable[[str], None]
) -> Train:
    """What has points trained by the options' executor."""

    def train(points: Sequence[Point]) -> Outcome:
        show(describe_status(points))
        here = launcher.choose_executor(options, points, workdir)
        return launcher.launch_sweep(points, workdir, stop, here)

    return train


def default_rates(config: Mapping[str, Any]) -> Rates:
    """From half to four times the base width; rates from an eighth to eight times the config's."""
    width = config["optim"]["transfer"]["width"]
    widths = (width // 2, width, 2 * width, 4 * width)
    return Rates(widths, tuple(2.0**k for k in range(-3, 4)), 2)


class RateSweep:
    """The runs of the stages `rate` and `regret` at `workdir`, which `train` has trained where they
    are not done."""

    def __init__(self, config: dict, rates: Rates, workdir: Path, train: Train):
        self.config, self.rates, self.workdir, self.train = config, rates, workdir, train
        self.names = {"rule": config["optim"]["transfer"]["rule"], "standard": "none"}

    def fill(self, document: dict[str, Any], stages: Collection[str]) -> Mapping[str, str]:
        """Add the `stages` rate and regret to the document, as far as their runs are done; why the
        others are not, by run id."""
        try:
            rate = self.rate()
            if "rate" in stages:
                document["rate"] = rate
            if "regret" in stages:
                document["regret"] = self.regret(rate)
        except _Unfinished as error:
            return error.missing
        return {}

    def rate(self) -> dict[str, Any]:
        """The document of the stage: for "rule" and "standard" the optima of all widths."""
        widths, lr = self.rates.widths, transfer.base_lr(self.config)
        asked = [
            (which, width, lr * factor, 0)
            for which in RULES
            for width in widths
            for factor in self.rates.factors
        ]
        rows = dict(zip(asked, self._trained(asked), strict=True))
        out: dict[str, Any] = {"widths": list(widths), "lr": [lr * f for f in self.rates.factors]}
        out["tokens"] = next(iter(rows.values()))["tokens"]
        for which in RULES:
            of = [(at[1], at[2], row) for at, row in rows.items() if at[0] == which]
            curves = []
            for width in widths:
                mine = [(lr, row) for w, lr, row in of if w == width]
                losses = {lr: _loss(row) for lr, row in mine}
                curves.append(rate_optima.make_curve(width, mine[0][1]["params"], losses))
            base = self.config["optim"]["transfer"]["width"]
            out[which] = {
                "transfer": self.names[which],
                **rate_optima.describe(curves, base),
                "law": _law([row for _, _, row in of]),
            }
        return out

    def regret(self, rate: Mapping[str, Any]) -> dict[str, Any]:
        """What the optimum of the base width costs at the largest one against a sweep there, by
        fresh seeds of the candidates: those that were chosen by have been lucky."""
        largest, base = self.rates.widths[-1], self.config["optim"]["transfer"]["width"]
        optima = {which: rate[which]["optima"] for which in RULES}
        small = next((e for e in optima["rule"] if e["width"] == base), optima["rule"][0])
        candidates = {
            "transferred": ("rule", small),
            "tuned": ("rule", optima["rule"][-1]),
            "standard": ("standard", optima["standard"][-1]),
        }
        seeds = range(1, self.rates.seeds + 1)
        asked = [
            (which, largest, entry["lr"], seed)
            for which, entry in candidates.values()
            for seed in seeds
        ]
        found = iter([_loss(row) for row in self._trained(asked)])
        losses = {name: [next(found) for _ in seeds] for name in candidates}
        compared = rate_optima.compare_candidates(losses, "transferred")
        against = compared.pop("against")
        return {
            **against["tuned"],
            "standard": against["standard"],
            **compared,
            "seeds": len(seeds),
            "width": largest,
            "from_width": small["width"],
            "candidates": {
                name: {
                    "transfer": self.names[which],
                    "lr": entry["lr"],
                    "censored": entry["censored"],
                    "loss": [x if math.isfinite(x) else None for x in losses[name]],
                }
                for name, (which, entry) in candidates.items()
            },
        }

    def _trained(self, asked: Sequence[tuple[str, int, float, int]]) -> list[dict[str, Any]]:
        """The rows of runs given by (rule or standard, width, learning rate, seeds from the
        config's). Raises _Unfinished."""
        resolved = resolve_configs([self._config(*one) for one in asked])
        outcome = self.train(locate_points(resolved, self.workdir))
        missing = {k: why for k, why in outcome.missing.items() if not why.startswith("diverged")}
        if missing:
            raise _Unfinished(missing)
        return [read_row(self.workdir / "runs" / one.run.id) for one in resolved if one.run]

    def _config(self, which: str, width: int, lr: float, seed: int) -> tuple[dict, dict]:
        depth = self.config["optim"]["transfer"]["depth"] or self.config["model"].get("depth") or 2
        changes = transfer.at_shape(self.config, self.names[which], (width, depth), lr)
        changes |= {"eval.every": 0, "seed": self.config["seed"] + seed}
        if "seed" in self.config["data"]:
            changes["data.seed"] = self.config["data"]["seed"] + seed
        changed, problems = validation.override(self.config, changes)
        if problems:
            raise BadInput(*problems)
        return changes, validated(changed)


def _loss(row: Mapping[str, Any]) -> float:
    return float(row["loss"]) if row["status"] == "done" else math.inf


def _law(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The exponent of params in the best learning rate, by the law of all runs in one fit, or why
    there is none."""
    try:
        done = [row for row in rows if row["status"] == "done"]
        document = analyze("recipe", done, {"bootstrap": 0}, checks_too=False).document
        return {"params": document["recipe"]["log_lr"]["params"],
                "interval": document["intervals"].get("lr_N")}  # fmt: skip
    except BadInput as error:
        return {"why": str(error)}
