"""Compute-optimal sizes without a law of the loss: isoFLOP minima, the envelope of all runs, or
optima that somebody else has located; the power laws through them, and the document of that.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from research.errors import BadInput
from research.scaling import envelope, isoflop, table
from research.scaling.fit_document import left_out_warning, loss_unit, seed_noise
from research.scaling.options import Options, filter_rows, hold_out_rows

NEEDED = envelope.NEEDED
WAYS = {
    "isoflop": isoflop.locate_minima,
    "envelope": envelope.fit_envelope,
    "optima": envelope.fit_given_optima,
}


def needed_columns(name: str) -> tuple[str, ...]:
    """The columns that one of WAYS reads."""
    return NEEDED[:3] if name == "optima" else NEEDED


def fit_minima(name: str, rows: Sequence[table.Row], options: Options) -> dict[str, Any]:
    """The document of fit.json for one of WAYS. Raises BadInput for fewer than two budgets whose
    minimum can be located, and for options that belong to a law."""
    unfit = [k for k in ("fix", "init", "score", "starts", "predict") if getattr(options, k)]
    unfit += ["drop_top_loss"] if name == "optima" and options.drop_top_loss else []
    if unfit:
        raise BadInput(f"--{unfit[0]}: {name} has no parameters of that kind")
    usable, dropped = table.usable_rows(rows, needed_columns(name), options.where, options.finished)
    usable, dropped = filter_rows(usable, dropped, options, "loss")
    fitted, held_out = hold_out_rows(usable, options.holdout, "flops")
    estimate = WAYS[name](fitted, options)
    noise = {"seed_noise": None, "fall": None}
    if name != "optima":
        noise = seed_noise(fitted, ("flops", "params"))
    document = {
        "law": name,
        "formula": "N* = k C^a, D* = k' C^a'",
        "against": "flops",
        "response": "loss",
        "unit": loss_unit(usable),
        "n_points": len(fitted),
        "dropped": dropped + estimate.pop("dropped"),
        "objective": None,
        "options": {
            "method": options.method if name == "isoflop" else None,
            "where": options.where,
            "drop_top_loss": options.drop_top_loss,
            "holdout": options.holdout,
            "seed": options.seed,
            "cluster": options.cluster,
            "bootstrap": len(estimate["draws"]),
        },
        **isoflop.summarize_power_laws(estimate),
        "starts": None,
        **noise,
        "identifiability": {},
        "certificate": None,
        **{k: v for k, v in estimate.items() if k not in ("draws", "optimal")},
        "predictions": [isoflop.predict_optimum(estimate, c) for c in options.predict_flops],
        "holdout": isoflop.check_held_out(estimate, held_out, options)
        if held_out and name == "isoflop"
        else None,
    }
    document["warnings"] = estimate["warnings"] + _warnings(document)
    return document


def _warnings(document: Mapping[str, Any]) -> list[str]:
    out = left_out_warning(document["dropped"])
    sides = document.get("methods") or {}
    if len(sides) == 2:
        one, two = (sides[name]["params_exponent"] for name in isoflop.LOCATE)
        if abs(one - two) > 0.02:
            out.append(
                f"akima and parabola differ: the exponent of N* is {one:.3f} and {two:.3f}; the "
                "valleys are not parabolas"
            )
    if holdout := document["holdout"]:
        missed = len(holdout["rows"]) - holdout["covered"]
        if missed:
            out.append(f"{missed} of {len(holdout['rows'])} held-out budgets lie outside")
    return out
