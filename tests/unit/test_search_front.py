"""All sizes in one search, on toy objectives."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import toys
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import Memory, Toy

from tracenas.space import Budget, SearchSpace
from tracenas.space.costs import Cost
from tracenas.strategies import Prior, SearchSettings, run_search
from tracenas.strategies.front import Front, non_dominated, volume

SMALL = SearchSettings(population=10, elites=4, iterations=4)
SPACE = toys.space(0.95, layers=6, channels=256)
LOW = int(0.5 * SPACE.parameters(SPACE.base))


def of_the_toy(space: SearchSpace) -> dict[tuple[int, str], list[float]]:
    """The table of `Toy`: it adds up over sub-blocks as the objective does."""
    toy, slots = Toy(space), [(i, s) for i, layer in enumerate(space.layers) for s in layer.sub_blocks]
    weights = dict(zip(slots, np.tile(toy.weights, len(slots))[: len(slots)], strict=True))
    return {(i, s.name): [weights[i, s] * (1 - np.sqrt(k / s.units)) for k in (0, *s.choices())] for i, s in slots}


def front(space: SearchSpace = SPACE, *, table: bool = True, low: int = LOW, **changes: Any) -> Front:
    rises = of_the_toy(space) if table else None
    prior = Prior([[1.0, 1.0]] * len(space.layers), None, rises)
    return Front(space, replace(SMALL, **changes), smallest=low, prior=prior)


def points(records: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    return {r["id"]: (r["params"], r["score"]) for r in records if r["score"] is not None}


def brute(found: dict[str, tuple[float, float]]) -> set[str]:
    """What nothing dominates, pair by pair; of equal points one."""
    kept = dict((point, name) for name, point in reversed(found.items()))
    return {
        name
        for point, name in kept.items()
        if not any(q != point and q[0] <= point[0] and q[1] >= point[1] for q in kept)
    }


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12))
@settings(max_examples=200, deadline=None)
def test_non_dominated_and_volume_equal_the_definition(drawn: list[tuple[int, int]]) -> None:
    named = {str(n): (float(cost), float(score)) for n, (cost, score) in enumerate(drawn)}
    found = non_dominated(named)
    assert {named[name] for name in found} == {named[name] for name in brute(named)} and len(found) == len(brute(named))
    assert [named[name] for name in found] == sorted(named[name] for name in found)
    heights = [max((s for c, s in named.values() if c <= at), default=2.0) for at in range(6)]
    expected = sum(max(height, 2.0) - 2.0 for height in heights)  # unit steps: costs are whole numbers
    assert volume(list(named.values()), 6.0, 2.0) == pytest.approx(expected)


@pytest.mark.parametrize("table", [True, False])
def test_every_candidate_lies_between_the_ends_and_the_front_covers_them(table: bool) -> None:
    strategy, journal = front(table=table), Memory()
    result = run_search(strategy, Toy(SPACE), journal)
    assert len({r["id"] for r in journal.records}) == len(journal.records) > 25
    sizes = sorted(r["params"] for r in journal.records)
    margin = SPACE.window[1] - SPACE.window[0]
    assert LOW - margin <= sizes[0] and sizes[-1] <= SPACE.window[1]
    found = points(journal.records)
    members = non_dominated(found)
    steps = np.diff([LOW, *(found[name][0] for name in members), SPACE.window[1]])
    assert steps.max() < 0.4 * (SPACE.window[1] - LOW) + margin
    assert result.score == max(score for _, score in found.values())


@pytest.mark.parametrize("table", [True, False])
def test_later_generations_improve_the_front_over_equal_ratios(table: bool) -> None:
    strategy, journal, toy = front(table=table, iterations=6), Memory(), Toy(SPACE)
    run_search(strategy, toy, journal)
    first = [p for r in journal.records if not r["generation"] for p in [(r["params"], r["score"])]]
    assert volume(list(points(journal.records).values()), SPACE.window[1], 0.0) > volume(first, SPACE.window[1], 0.0)
    for limit in strategy.limits:
        uniform = SPACE.at(limit).uniform()
        assert uniform is not None
        best = max(score for cost, score in points(journal.records).values() if cost <= limit)
        assert best >= toy.value(uniform)


def test_a_run_is_the_same_again_and_where_it_was_interrupted() -> None:
    whole, pieces = Memory(), Memory()
    run_search(front(), Toy(SPACE), whole)
    for stop in (7, 19):
        pieces.records = [dict(r) for r in whole.records[:stop]]
        run_search(front(), Toy(SPACE), pieces)
        timeless = [[json.dumps({**r, "seconds": 0}) for r in memory.records] for memory in (whole, pieces)]
        assert timeless[0] == timeless[1]


def test_other_budgets_hold_at_every_size() -> None:
    heads = Cost("heads", "heads", 0, lambda s, k: k if s.name == "attention" else 0)
    space = replace(SPACE, further=(Budget(20, cost=heads),))
    journal = Memory()
    run_search(front(space), Toy(space), journal)
    assert all(sum(layer.get("heads", 0) for layer in r["arch"]["layers"]) <= 20 for r in journal.records)
