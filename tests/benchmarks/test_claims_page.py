from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from benchmarks.claims_records import record
from parts.claims.page import page
from parts.claims.pictures import draw_figures
from parts.claims.scoreboard import (
    ablation_json,
    by_size,
    combination_claim,
    gain_claim,
    method_json,
    residual_claim,
    speed_claim,
)

from krscale.config import load


def test_results_of_a_former_loss_are_marked(result: dict[str, Any]) -> None:
    assert "older than two changes" not in page(result, {})
    methods = result["tasks"][0]["sizes"][0]["methods"]
    search = {"seeds": [1000], "best": {"distill.at_weight": 10.0}}
    methods["at"] = {**methods["kd"], "searches": [search]}
    assert "`at` summed over positions" in page(result, {})
    search["best"] = {"distill.at_reduction": "sum", "distill.at_weight": 10.0}
    assert "older than two changes" not in page(result, {})


@pytest.fixture
def result() -> dict[str, Any]:
    """A result in which KR loses to KD at one size and wins at the other."""
    records = [
        record("kr", [0.40, 0.41, 0.42], capacity="1/32"),
        record("kd", [0.50, 0.51, 0.52], capacity="1/32"),
        record("plain", [0.30, 0.31, 0.32], capacity="1/32"),
        record("kr", [0.80, 0.81, 0.82], capacity="1/4"),
        record("kd", [0.70, 0.71, 0.72], capacity="1/4"),
        record("kr+kd", [0.70, 0.71, 0.72], capacity="1/4"),
    ]
    sizes = by_size(records, ["1/32", "1/4"])
    traced = {"layer_wise": {1: [3.0, 2.0, 1.0]}, "aggregated": {1: [3.0, 2.0, 0.5]}}
    num_parameters = {"1/32": 5000, "1/4": 40000}
    without = {"1/4": {"without sparsity": record("kr", [0.79, 0.80, 0.82], capacity="1/4")}}
    task = {
        "name": "glyphs",
        "title": "Glyphs",
        "published": "",
        "num_train": 3072,
        "num_searches": 1,
        "commit": "0123456789abcdef",
        "unfinished": ["features (search 1)"],
        "task": load("jobs/claims.toml", []).model_dump(mode="json"),
        "teacher": {
            "model": "resnet",
            "width": 16,
            "num_parameters": 170_000,
            "test_accuracy": 0.9,
        },
        "trial_seconds": 7200,
        "seeds": [1000, 1001, 1002],
        "steps_per_epoch": 10,
        "sizes": [
            {
                "capacity": capacity,
                "num_parameters": num_parameters[capacity],
                "flops": 1000,
                "width": 4,
                "methods": {name: method_json(r, size, 10) for name, r in size.items()},
            }
            for capacity, size in sizes.items()
        ],
        "C1": residual_claim({"1/4": traced}),
        "C2": speed_claim(sizes, 10),
        "C3": gain_claim(sizes),
        "C4": combination_claim(sizes),
        "ablations": ablation_json({size: found["kr"] for size, found in sizes.items()}, without),
    }
    return {
        "command": "python benchmarks/claims.py",
        "machine": "2 x test",
        "tasks": [task],
        "not_here": ["cifar10"],
    }


def test_the_page_says_what_is_unfinished_and_where_kr_loses(result: dict[str, Any]) -> None:
    text = page(result, {})
    assert "**Unfinished.** Not measured yet: features (search 1)." in text
    assert "**Not measured:** cifar10; the data was not there." in text
    assert "- at 1/32, `kd` is better than `kr` by +10.0 [+10.0 to +10.0] points." in text
    assert "| 1/4 | `kd` | +10.0 [+10.0 to +10.0] | holds | yes |" in text
    assert "| 1/4 | without sparsity | +0.7 [-0.8 to +2.1] | undecided |" in text
    assert "C3: holds at 1 of 2 sizes, does not hold at 1 of 2 sizes." in text
    assert "does not hold at 1 of 2 sizes; against 2 of 12 opponents |" in text
    assert "**41.0 ± 2.5**" not in text  # bold is the best of its size, which is KD here
    assert "**51.0 ± 2.5**" in text


def test_a_loss_over_the_seeds_is_listed_though_searches_leave_it_undecided(
    result: dict[str, Any],
) -> None:
    gain = result["tasks"][0]["C3"]["gain_over_each"][0]["gain"]["kd"]
    gain["over_searches"] = {"mean": -0.1, "low": -0.25, "high": 0.05}
    gain["verdict"] = "undecided"
    line = "by +10.0 [+10.0 to +10.0] {-5.0 to +25.0} points; undecided over searches."
    assert f"- at 1/32, `kd` is better than `kr` {line}" in page(result, {})


def test_results_of_the_first_formulation_are_marked(result: dict[str, Any]) -> None:
    assert "first formulation**" not in page(result, {})
    del result["tasks"][0]["task"]["distill"]
    assert "**KR here is its first formulation**" in page(result, {})


def test_a_page_before_anything_was_measured_can_be_written(result: dict[str, Any]) -> None:
    task = {
        **result["tasks"][0],
        "teacher": None,
        "sizes": [{**size, "methods": {}} for size in result["tasks"][0]["sizes"]],
        "C1": residual_claim({}),
        "C2": speed_claim({}, 10),
        "C3": gain_claim({}),
        "C4": combination_claim({}),
        "ablations": [],
    }
    assert page({**result, "tasks": [task]}, {}).count("Not measured yet.") == 6


def test_every_figure_is_drawn_and_shown(result: dict[str, Any], tmp_path: Path) -> None:
    figures = draw_figures(result, tmp_path)
    assert [path.name for path in figures] == [
        "claims-glyphs-accuracy.png",
        "claims-glyphs-residual.png",
        "claims-glyphs-convergence.png",
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in figures)
    text = page(result, {path.stem: Path("images") / path.name for path in figures})
    assert text.count("](images/claims-") == 3


def test_opponents_that_were_searched_once_are_named(result: dict[str, Any]) -> None:
    assert "Searched once" not in page(result, {})
    task = result["tasks"][0]
    task["num_searches"] = 2
    for size in task["sizes"]:
        for name in ("kr", "kd"):
            size["methods"][name]["searches"] *= 2
    # kd, the best opponent, has 0.51 and 0.71; plain has 0.31 at the first size.
    text = page(result, {})
    assert "Searched once: `plain`. They are 20.0 to 20.0 points" in text
    assert "Searched once, of those with KR in them: `kr+kd`." in text
    assert "Every method at every size, but for those named below: two independent searches" in text
