"""Fronts beside dedicated searches, and models of one decode latency: what is made of measured cells."""

from typing import Any

import pytest
from benchmark_modules import load_benchmark


def test_the_largest_that_meets_is_found_by_halving() -> None:
    largest = load_benchmark("equal_latency").largest
    assert largest(10, 1000, lambda n: n <= 137) == 137
    assert largest(10, 1000, lambda n: n <= 10) == 10
    assert largest(0, 1 << 30, lambda n: n <= 5, steps=3) == 0


def line(row: str, seed: int, losses: list[float]) -> dict[str, Any]:
    shares = {"params": 0.8, "prefill_ms": 0.7, "decode_ms": 0.7}
    known = {"shares": shares, "predicted_rise": 0.3, "blocks": 30}
    return {"what": "losses", "row": row, "seed": seed, "losses": {"t": losses}, **known}


def test_a_lead_is_paired_over_windows_and_said_by_seed() -> None:
    compared = load_benchmark("equal_latency").compared
    records = [
        line("latency", 0, [1.0, 2.0]),
        line("params", 0, [1.5, 2.5]),
        line("uniform", 0, [2.0, 2.0]),
        line("latency", 1, [1.0, 2.0]),
        line("params", 1, [1.25, 2.25]),
        line("uniform", 1, [1.0, 3.0]),
        line("latency", 2, [9.0, 9.0]),  # the others of this seed are not measured yet
        {
            "what": "bench",
            "row": "all",
            "seed": 0,
            "measured": benched({"latency": 1.25, "params": 2.0, "uniform": 1.0}),
        },
    ]
    table = compared(records)
    assert table["seeds"] == [0, 1]
    leads = table["t"]["lead"]
    assert leads["params"]["by seed"] == [-0.5, -0.25]
    assert leads["params"]["mean"] == -0.375
    assert leads["params"]["standard error over windows"] == 0.0
    assert leads["uniform"] == {
        "mean": -0.5,
        "by seed": [-0.5, -0.5],
        "spread of seeds": 0.0,
        "standard error over windows": 0.0,
    }
    assert table["measured share, decode"] == {"latency": [0.8], "params": [0.5], "uniform": [1.0]}


def benched(speedups: dict[str, float]) -> dict[str, Any]:
    phases = ("prefill_speedup", "decode_speedup")
    return {row: {phase: {"median": value} for phase in phases} for row, value in speedups.items()}


def cell(kind: str, size: str, losses: list[float], **further: Any) -> dict[str, Any]:
    return {"seed": 0, "kind": kind, "size": size, "losses": {"t": losses}, **further}


def test_what_the_front_loses_is_paired_with_the_search_of_that_size() -> None:
    gaps = load_benchmark("fronts").gaps
    cells = [
        cell("search", "60%", [1.0, 2.0]),
        cell("best", "60%", [1.5, 2.25]),
        cell("best further", "60%", [1.0, 2.0]),
        cell("best", "80%", [1.0, 1.0]),  # its search is not measured yet
    ]
    table = gaps(cells, ["60%", "80%"])
    assert table["60%"]["best"]["t"] == {"by seed": [[0.375, 0.125]], "mean": 0.375}
    assert table["60%"]["best further"]["t"]["mean"] == 0.0
    assert "80%" not in table


def test_costs_are_over_those_of_the_mean_search() -> None:
    costs = load_benchmark("fronts").costs
    single = {"evaluations": 40, "evaluation_seconds": 20.0}
    cells = [
        cell("front", "all", [], evaluations=60, evaluation_seconds=50.0, cpu_seconds=70.0),
        cell("search", "60%", [], **single, cpu_seconds=30.0),
        cell("search", "80%", [], **single, cpu_seconds=None),  # it was interrupted
        cell("best further", "60%", [], evaluations=8, cpu_seconds=5.0),
    ]
    entry = costs(cells)["0"]
    assert entry["evaluations"]["ratio"] == 1.5
    assert entry["evaluation_seconds"]["ratio"] == 2.5
    assert entry["cpu_seconds"]["ratio"] is None
    assert entry["further evaluations"] == 8


def test_hypervolumes_stand_on_equal_ratios_at_the_smallest_size() -> None:
    hypervolumes = load_benchmark("fronts").hypervolumes
    cells = [
        cell("uniform", "50%", [4.0, 4.0], share=0.5),
        cell("uniform", "95%", [3.0, 3.0], share=0.95),
        cell("front best", "50%", [3.5, 3.5], share=0.5),
        cell("front best", "75%", [3.0, 3.0], share=0.75),
        cell("flap", "50%", [9.0, 9.0], share=0.5),
        {"seed": 0, "kind": "mlp", "size": "50%", "architecture": None},
    ]
    table = hypervolumes(cells)["t"]
    assert table["uniform"] == [0.0]
    assert table["front best"] == [pytest.approx(0.25 * 0.5 + 0.2 * 1.0)]
    assert table["flap"] == [0.0]
