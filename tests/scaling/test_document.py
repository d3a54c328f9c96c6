"""What every fit.json has, whatever the law, the method and the answer."""

import json

import pytest

from research.report import fit_text
from research.scaling import analyze
from tests.scaling.test_what_no_row_shows import GRID, SIZES, runs

TIED = [(n, 20 * n) for n in SIZES]
VALLEYS = [(n, c / n) for c in (1e16, 1e17, 1e18) for n in SIZES]
ASKED = {"predict_flops": [1e21], "bootstrap": 0}


def optima():
    return [{k: row[k] for k in ("run", "params", "tokens", "flops")} for row in runs(TIED)]


@pytest.mark.parametrize(
    ("law", "rows", "options", "known"),
    [
        ("chinchilla", runs(GRID), {}, True),
        ("chinchilla", runs(TIED), {}, False),  # no optimum
        ("power", runs(GRID), {"against": "flops"}, True),
        ("isoflop", runs(VALLEYS), {}, False),  # of three minima no loss is predicted
        ("envelope", runs(VALLEYS), {}, False),
        ("optima", optima(), {}, False),
    ],
)
def test_a_document_has_what_is_promised(law, rows, options, known):
    document = analyze(law, rows, {**ASKED, **options}, checks_too=law != "power").document
    json.dumps(document, allow_nan=False)
    assert {*document["noise"]} == {"value", "source", "freedom"}
    assert isinstance(document["warnings"], list)
    assert isinstance(document["influence"], list)
    (point,) = document["predictions"]
    assert (point["loss"] is not None) == known
    for name in ("interval", "run_interval"):
        assert len(point[name]) == 2
        assert (None not in point[name]) == known
    assert {"noise", "parameters", "law"} <= {*point["parts"]}
    assert (point["parts"]["noise"] is not None) == known


def test_a_part_without_an_end_is_called_open():
    parts = {"noise": 0.01, "parameters": None, "law": 0.02, "floor": None}
    assert (
        fit_text._parts_words(parts)
        == "±1.00% noise of a run, open parameters, ±2.00% choice of the law"
    )
