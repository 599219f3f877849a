"""Held-out text decides between the candidates that a search's own text cannot tell apart."""

import math
from typing import Any

import numpy as np
import pytest

from tracenas.errors import UserError
from tracenas.strategies.selection import CONTENDERS, Contender, contenders, selected, trials_from_json

NOISE = np.array([0.3, -0.3, 0.1, -0.1])


def record(name: str, mean: float, spread: float = 0.0, **more: Any) -> dict[str, Any]:
    """A candidate's line: the score is minus the mean of its terms."""
    terms = (mean + spread * NOISE + np.array([0.0, 0.5, 1.0, -1.5])).tolist()
    return {"id": name, "score": -mean, "terms": terms, **more}


def trial(name: str, mean: float, spread: float = 0.0, *, stock: bool | None = None) -> Contender:
    return Contender(name, tuple((mean + spread * NOISE).tolist()), stock)


def names(records: list[Any]) -> list[str]:
    return [r["id"] for r in records]


def test_contenders_are_those_within_the_noise_of_the_best() -> None:
    best, near, far = record("best", 3.0), record("near", 3.1, spread=1.0), record("far", 3.1, spread=0.01)
    differences = np.array(near["terms"]) - np.array(best["terms"])
    assert 2 * differences.std(ddof=1) / 2 > 0.1  # two standard errors of four pairs
    assert names(contenders([far, near, best], elites=9)) == ["best", "near"]


def test_contenders_are_elites_that_were_measured_to_the_end() -> None:
    even = [record(f"c{i}", 3.0 + i / 1000, spread=1.0 + i) for i in range(9)]
    failed, stopped = {"id": "failed", "score": None}, record("stopped", 2.0, stopped=1)
    assert names(contenders([failed, stopped, *even], elites=9)) == [f"c{i}" for i in range(CONTENDERS)]
    assert names(contenders(even, elites=2)) == ["c0", "c1"]


def test_without_terms_any_elite_may_be_the_best() -> None:
    assert names(contenders([{"id": "a", "score": 1.0}, {"id": "b", "score": 0.5}], elites=2)) == ["a", "b"]


def test_the_lowest_loss_on_held_out_text_is_taken() -> None:
    found = selected([trial("a", 3.0), trial("b", 2.9, 0.1), trial("c", 3.2)], "loss")
    assert (found.chosen.id, found.searched.id) == ("b", "a")
    rows = found.to_json()["contenders"]
    error = (0.1 * NOISE).std(ddof=1) / 2
    assert rows[1]["difference"] == pytest.approx(-0.1) and rows[1]["error"] == pytest.approx(error)
    assert rows[0] == {"id": "a", "mean": 3.0, "difference": 0.0, "error": 0.0}
    assert "another than the search's" in found.said


def test_what_could_not_be_measured_is_not_taken() -> None:
    broken = Contender("a", (math.inf,) * 4)
    found = selected([broken, trial("b", 9.0)], "loss")
    assert (
        found.chosen.id == "b"
        and found.said.endswith("could not be measured there")
        and found.to_json()["contenders"][0] == {"id": "a"}
    )


@pytest.mark.parametrize(("spread", "chosen"), [(1.0, "plain"), (0.01, "best")])
def test_a_stock_shape_is_taken_within_the_noise_alone(spread: float, chosen: str) -> None:
    found = selected([trial("best", 3.0, stock=False), trial("plain", 3.1, spread, stock=True)], "stock")
    assert found.chosen.id == chosen
    assert ("within the noise" in found.said) is (chosen == "plain")


def test_a_stock_shape_that_is_the_best_needs_no_comparison() -> None:
    found = selected([trial("best", 3.0, stock=True), trial("other", 2.9, stock=True)], "stock")
    assert found.chosen.id == "other" and "noise" not in found.said


def test_without_a_stock_shape_the_best_is_taken_and_it_is_said() -> None:
    found = selected([trial("best", 3.0, stock=False)], "stock")
    assert found.chosen.id == "best" and found.said.endswith("no stock-shaped candidate was measured")


def test_trials_are_read_as_they_are_written() -> None:
    trials = [trial("a", 3.0, 1.0, stock=True), Contender("b", (math.inf, 1.0))]
    assert trials_from_json({"trials": [t.to_json() for t in trials]}, where="selection.json") == trials


@pytest.mark.parametrize(
    "data", [[], {}, {"trials": []}, {"trials": [{"id": "a"}]}, {"trials": [{"id": "a", "terms": ["x"]}]}]
)
def test_a_damaged_file_is_one_line(data: object) -> None:
    with pytest.raises(UserError, match=r"^selection.json: ") as caught:
        trials_from_json(data, where="selection.json")
    assert "\n" not in caught.value.args[0]
