"""A sample of very many rows covers what they cover, and is the same whatever their order."""

import random

import numpy as np
import pytest

from research import scaling
from research.errors import BadInput
from research.tables import sampling
from research.tables.table import Table

COUNT = 30_000


@pytest.fixture(scope="module")
def many():
    rng = np.random.default_rng(0)
    params, tokens = 10 ** rng.uniform(6, 9, COUNT), 10 ** rng.uniform(8, 11, COUNT)
    noise = np.exp(rng.normal(0, 0.01, COUNT))
    loss = (1.7 + 400 / params**0.34 + 410 / tokens**0.28) * noise
    columns = {"params": params.round(), "tokens": tokens.round(), "loss": loss}
    rows = [{k: float(x[i]) for k, x in columns.items()} for i in range(COUNT)]
    return Table([{"run": f"r{i}", "half": i % 2, **row} for i, row in enumerate(rows)])


def names(rows):
    return [row["run"] for row in rows]


def test_a_sample_is_of_the_rows_and_not_of_their_order(many):
    sample, said = sampling.sample_rows(many, 500)
    assert said == {"rows": 500, "of": COUNT}
    assert len(set(names(sample))) == 500
    assert sample.places == [f"row {int(name[1:]) + 1}" for name in names(sample)]
    shuffled = random.Random(1).sample(list(many), COUNT)
    assert names(sampling.sample_rows(shuffled, 500)[0]) == names(sample)
    assert names(sampling.sample_rows(many, 500, seed=1)[0]) != names(sample)


def test_every_stratum_has_its_share(many):
    sample, _ = sampling.sample_rows(many, 640)
    for column, parts in (("params", 32), ("tokens", 8)):
        edges = np.quantile([row[column] for row in many], np.arange(1, parts) / parts)
        strata = np.searchsorted(edges, [row[column] for row in sample], side="right")
        counts = np.bincount(strata, minlength=parts)
        share = 640 / parts
        assert (abs(counts - share) <= (1 if column == "params" else 0.2 * share)).all(), column


def test_what_is_few_is_as_it_is(many):
    few = Table(many[:100])
    assert sampling.sample_rows(few, None) == (few, None)
    assert sampling.sample_rows(few, 100) == (few, None)
    assert len(sampling.sample_rows(few, 99)[0]) == 99


def test_a_sample_is_of_the_rows_that_meet_the_condition(many):
    sample, said = sampling.sample_rows(many, 50, condition="half==1")
    assert {row["half"] for row in sample} == {1}
    assert said == {"rows": 50, "of": COUNT // 2}
    rows = [{**row, "run": f"r{i // 3}"} for i, row in enumerate(many[:600])]
    sample, said = sampling.sample_rows(rows, 50, last_rows=True)
    assert said == {"rows": 50, "of": 200}
    assert len(set(names(sample))) == 50


@pytest.mark.slow
def test_too_many_rows_are_rejected_with_advice(many):
    with pytest.raises(BadInput, match=r"30,000 rows: .*at most 10,000; --sample=500 fits"):
        scaling.analyze("chinchilla", many, {})
    with pytest.raises(BadInput, match=r"--sample=10001: expected 1 to 10000 rows"):
        scaling.analyze("chinchilla", many, {"sample": 10_001})
    words = r"1,200 rows: several laws .*at most 1,000; .*--law=chinchilla up to 10,000"
    with pytest.raises(BadInput, match=words):
        scaling.analyze("auto", many[:1200], {})
    few = {"where": "params<1.02e6", "bootstrap": 0}
    document = scaling.analyze("chinchilla", many, few, checks_too=False).document
    assert "sample" not in document, "the twin: those that are fitted are few"


def test_the_document_says_what_it_was_fitted_to(many):
    options = {"sample": 300, "bootstrap": 0}
    document = scaling.analyze("chinchilla", many, options, checks_too=False).document
    assert document["sample"] == {"rows": 300, "of": COUNT}
    assert document["options"]["sample"] == 300
    assert document["warnings"][0].startswith("fitted to a sample of 300 of 30,000 rows")
    assert document["params"]["alpha"] == pytest.approx(0.34, abs=0.05)
