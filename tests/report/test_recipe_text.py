"""The page says which rules its runs followed, and what a check of transfer found."""

import json

import numpy as np
import pytest

from research.report import build, reuse, transfer_text
from tests.report.test_report import workdir
from tests.scaling.test_scaling import noisy

RULES = "size given by its fields\nlearning rate = 0.2 / width\nwidth 16: 0.0125"


def coordinates(slope, ratio):
    slopes = [{"step": 2, "slope": slope, "interval": [slope - 0.01, slope + 0.01]}]
    sizes = {"64": [[0.0, 0.0], [1.0, 1.0]], "128": [[0.0, 0.0], [1.0, 2.0**slope]]}
    return {
        "transfer": "complete_p",
        "max_abs_slope_width": slope,
        "depth_ratio": ratio,
        "flat": slope < 0.05,
        "by_depth": {"module": "residual", "size": {"2": 1.0, "32": ratio}},
        "modules": {"logits": {"size": slopes, "change": slopes}},
        "counted": ["logits"],
        "sizes": {"logits": sizes},
    }


def rates(moves):
    optima = [
        {
            "width": width,
            "params": 100 * width,
            "lr": lr,
            "interval": [lr / 1.2, lr * 1.2],
            "censored": None,
            "curvature": 0.1,
            "loss": 2.0,
            "tried": {"lr": [lr / 2, lr, 2 * lr], "loss": [2.1, 2.0, None]},
        }
        for width, lr in ((32, 0.01), (64, 0.01 * 2**moves))
    ]
    return {
        "transfer": "complete_p",
        "optima": optima,
        "optimum_shift_log2": moves,
        "optimum_shift_interval": [moves - 0.1, moves + 0.1],
        "censored": False,
        "shared_lr": 0.01,
        "rises": [],
        "wider_never_worse": True,
    }


def document():
    candidates = {
        name: {"transfer": "complete_p", "lr": 0.01, "censored": None, "loss": [2.0, loss]}
        for name, loss in (("transferred", 2.1), ("tuned", 2.05), ("standard", None))
    }
    regret = {"loss": 0.025, "interval": [-0.01, 0.06], "seed_sd": 0.02, "seeds": 2}
    regret |= {"width": 64, "from_width": 32, "candidates": candidates}
    regret["standard"] = {"loss": None, "interval": None}
    both = {"rule": coordinates(0.01, 1.2), "standard": coordinates(0.9, 6.0)}
    return {
        "coordinates": {"steps": 10, **both},
        "rate": {"widths": [32, 64], "rule": rates(0.1), "standard": rates(-2.5)},
        "regret": regret,
    }


def ruled(**changed):
    return [{**row, "rules": RULES, **changed} for row in noisy(0)]


def test_the_page_has_the_check_of_transfer_with_its_figures(tmp_path):
    place = workdir(tmp_path, ruled())
    build.write_report(place)
    assert "hyperparameters transfer" not in (tmp_path / "report.html").read_text()
    (tmp_path / "transfer.json").write_text(json.dumps(document()))
    build.write_report(place)
    page = (tmp_path / "report.html").read_text()
    assert "Whether the hyperparameters transfer" in page
    for words in (
        "From width 32 to 64, the best learning rate moves by 2^+0.10 with the rule and 2^-2.50 "
        "without; at width 64, the best rate of width 32 costs +0.0250 (-0.0100 to +0.0600) of "
        "loss.",
        "With the rule (complete_p): largest slope in width 0.010, residual over depths x 1.2.",
        "moves by 2^-2.50 (-2.60 to -2.40) from width 32 to 64",
        "Against a sweep there: +0.0250 (-0.0100 to +0.0600).",
        "Against the standard&#x27;s best there: a run diverged.",
        "Loss against learning rate at every width.",
    ):
        assert words in page, words
    for name in transfer_text.WRITTEN:
        assert (tmp_path / "figures" / f"transfer_{name}.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_a_check_that_is_none_of_ours_is_told_and_the_page_is_made(tmp_path):
    place = workdir(tmp_path, ruled())
    (tmp_path / "transfer.json").write_text('{"rate": {"rule": 3}, "<b>": 1}')
    result = build.write_report(place)
    assert not result["transfer"].told
    page = (tmp_path / "report.html").read_text()
    assert "no check of transfer is shown" in page
    (tmp_path / "transfer.json").write_text("[]")
    assert not build.write_report(place)["transfer"].told


@pytest.mark.slow
def test_a_report_is_made_again_when_its_check_of_transfer_changes(tmp_path, monkeypatch):
    place = workdir(tmp_path / "runs", ruled())
    monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path / "cache"))
    reuse.written_report(place)
    (place / "transfer.json").write_text(json.dumps(document()))
    reuse.written_report(place)
    assert "Whether the hyperparameters transfer" in (place / "report.html").read_text()


@pytest.mark.parametrize("mixed", [False, True])
def test_the_page_says_which_rules_its_runs_followed(tmp_path, mixed):
    rows = ruled()
    if mixed:
        rows[0]["rules"] = "learning rate = 0.01, whatever the size"
    build.write_report(workdir(tmp_path, rows))
    page = (tmp_path / "report.html").read_text()
    section = page[page.index("Rules that the runs followed") :]
    assert '<th scope="row" class="text">learning rate = 0.2 / width</th>' in section
    assert ("these runs follow 2 rules" in page) is mixed
    assert ("whatever the size</th>" in section) is mixed


@pytest.mark.slow
def test_the_page_has_the_tokens_per_parameter_of_its_runs(tmp_path):
    rng, rows = np.random.default_rng(0), []
    for n in np.geomspace(1e5, 1e6, 4):
        for d in n * np.geomspace(1, 4, 4):
            loss = (1.7 + 400 / n**0.34 + 410 / d**0.28) * np.exp(0.001 * rng.normal())
            facts = {"params": int(n), "tokens": int(d), "flops": 6 * n * d, "rules": RULES}
            rows.append({"run": f"r{len(rows)}", "loss": loss, **facts})
    build.write_report(workdir(tmp_path, rows))
    page = (tmp_path / "report.html").read_text()
    assert "The runs have 1 to 4 tokens per parameter" in page
