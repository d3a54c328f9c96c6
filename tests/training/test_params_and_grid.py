"""Grids of points and paths of parameters."""

import pytest

from research.config import grid
from research.errors import BadInput
from research.params import flatten_dict, match_path

TABLE = (("embed/embedding", 1), ("attn/(query|key)/kernel", 2), (r"\w*norm/scale", 3))


def test_the_tail_of_a_path_finds_its_row():
    assert match_path(TABLE, "params/blocks/attn/key/kernel") == 2
    assert match_path(TABLE, "opt_state/0/mu/blocks/attn_norm/scale") == 3
    assert match_path(TABLE, "embed/embedding") == 1


@pytest.mark.parametrize("path", ["bembed/embedding", "attn/value/kernel", "attn/key/kernel/x", ""])
def test_a_path_without_a_row_is_an_error(path):
    with pytest.raises(BadInput, match="exactly one rule, it matches none; add a row"):
        match_path(TABLE, path)


def test_two_rows_that_claim_a_path_are_an_error():
    with pytest.raises(BadInput, match=r"exactly one .* narrow all but one"):
        match_path((*TABLE, ("kernel", 4)), "attn/key/kernel")


def test_flatten_joins_keys():
    assert dict(flatten_dict({"a": {"b": 1, "c": {"d": 2}}, "e": 3})) == {
        "a/b": 1,
        "a/c/d": 2,
        "e": 3,
    }


def test_product_zip_and_chain():
    a, b = grid.values("x", [1, 2]), grid.values("y", "pq")
    assert len(grid.product(a, b)) == 4
    assert grid.zip_(a, b) == [{"x": 1, "y": "p"}, {"x": 2, "y": "q"}]
    assert grid.chain(a, a, b) == [*a, *b]
    with pytest.raises(ValueError, match="two sweeps set"):
        grid.product(a, a)
    with pytest.raises(ValueError, match="shorter"):
        grid.zip_(a, b[:1])


def test_log_grid_is_even_in_the_logarithm_and_meets_its_ends():
    values = grid.log_grid(1e-3, 1e1, 5)
    assert values == pytest.approx([1e-3, 1e-2, 1e-1, 1, 10])
    assert grid.log_grid(2, 8, 1) == [4]


def test_isoflop_crosses_budgets_with_sizes():
    points = grid.isoflop([1e11, 1e12], [1e4, 2e4, 4e4])
    assert len(points) == 6
    assert points[0] == {"horizon.unit": "flops", "horizon.amount": 1e11, "size": 1e4}


def test_isoflop_centers_sizes_of_each_budget_on_a_prior_law():
    points = grid.isoflop([1e12, 1e14], n=3, spread=2.0)
    sizes = [point["size"] for point in points]
    best = (1e12 / 120) ** 0.5  # 20 tokens per parameter at 6 N D
    assert sizes[:3] == pytest.approx([best / 2, best, best * 2])
    assert sizes[3:] == pytest.approx([10 * size for size in sizes[:3]])
    own = grid.isoflop([1e12], n=1, around=(2.0, 0.25), unit="flops_6nd")
    assert own == [{"horizon.unit": "flops_6nd", "horizon.amount": 1e12, "size": own[0]["size"]}]
    assert own[0]["size"] == pytest.approx(2000)
    for wrong in ({}, {"targets": [1e4], "n": 3}):
        with pytest.raises(ValueError, match="either the sizes or n"):
            grid.isoflop([1e12], **wrong)


@pytest.mark.parametrize("ends", [(0, 1, 3), (1, -1, 3), (1, 2, 0)])
def test_an_invalid_grid_is_rejected(ends):
    with pytest.raises(ValueError, match="expected ends above 0"):
        grid.log_grid(*ends)


def test_replicates_differ_in_both_seeds():
    assert grid.seeds(2) == [{"seed": 0, "data.seed": 0}, {"seed": 1, "data.seed": 1}]
