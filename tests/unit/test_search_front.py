"""All sizes in one search, on toy objectives."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import toys
from toys import Memory, Toy

from tracenas.scoring.front_bars import FrontBars
from tracenas.space import Architecture, Budget, SearchSpace, SubBlockSpec
from tracenas.space.costs import Cost
from tracenas.strategies import Prior, SearchSettings, run_search
from tracenas.strategies.dominance import non_dominated, volume
from tracenas.strategies.front import Front

SMALL = SearchSettings(population=10, elites=4, iterations=4)
SPACE = toys.space(0.95, layers=6, channels=256)
LOW = int(0.5 * SPACE.parameters(SPACE.base))


def of_the_toy(space: SearchSpace) -> dict[tuple[int, str], list[float]]:
    """The table of `Toy`: it adds up over sub-blocks as the objective does."""
    toy, slots = Toy(space), [(i, s) for i, layer in enumerate(space.layers) for s in layer.sub_blocks]
    weights = dict(zip(slots, np.tile(toy.weights, len(slots))[: len(slots)], strict=True))
    return {(i, s.name): [weights[i, s] * (1 - np.sqrt(k / s.units)) for k in (0, *s.choices())] for i, s in slots}


def front(space: SearchSpace = SPACE, *costs: str, table: bool = True, low: int = LOW, **changes: Any) -> Front:
    rises = of_the_toy(space) if table else None
    prior = Prior([[1.0, 1.0]] * len(space.layers), None, rises)
    return Front(space, replace(SMALL, **changes), smallest=low, costs=costs or None, prior=prior)


def spent_time(spec: SubBlockSpec, kept: int) -> int:
    """What pulls another way than parameters: attention is slow, and MLPs hardly count."""
    return kept * (80 if spec.name == "attention" else 1) if kept else 0


TIME = Cost("time", "ticks", 50, spent_time)
SLOW = replace(SPACE, further=(Budget(int(0.95 * TIME.total(SPACE.layers, SPACE.base)), cost=TIME),))
COSTS = ("params", "time")


def both(records: list[dict[str, Any]]) -> dict[str, tuple[float, ...]]:
    """Costs as shares of the base's, and the score."""
    base = SLOW.costs(SLOW.base)
    found = {}
    for record in records:
        spent = SLOW.costs(Architecture.from_json(record["arch"], where="test"))
        found[record["id"]] = (*(spent[name] / base[name] for name in COSTS), record["score"])
    return found


def points(records: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    return {r["id"]: (r["params"], r["score"]) for r in records if r["score"] is not None}


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
    assert steps.max() < 0.5 * (SPACE.window[1] - LOW) + margin
    assert result.score == max(score for _, score in found.values())


@pytest.mark.parametrize("table", [True, False])
def test_later_generations_improve_the_front_over_equal_ratios(table: bool) -> None:
    strategy, journal, toy = front(table=table, iterations=6), Memory(), Toy(SPACE)
    run_search(strategy, toy, journal)
    first = [p for r in journal.records if not r["generation"] for p in [(r["params"], r["score"])]]
    assert volume(list(points(journal.records).values()), [SPACE.window[1]], 0.0) > volume(
        first, [SPACE.window[1]], 0.0
    )
    assert len(strategy.targets) == SMALL.population
    for space in strategy.targets:
        uniform, limit = space.uniform(), space.window[1]
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


def test_targets_of_two_costs_are_of_each_alone_and_of_both_where_these_pull_apart() -> None:
    strategy = front(SLOW, *COSTS, population=24)
    ends = SLOW.windows
    bound = [tuple(one < end for (_, one), (_, end) in zip(s.windows, ends, strict=True)) for s in strategy.targets]
    assert {(True, False), (False, True), (True, True)} <= set(bound)
    base = SLOW.costs(SLOW.base)
    for space in strategy.targets:
        uniform = space.uniform()
        assert uniform is not None and space.fits(uniform)
        first = next(end for m, (_, end) in zip(space.measures, space.windows, strict=True) if m.name == "params")
        assert LOW <= first <= 0.95 * base["params"] + 1


@pytest.mark.parametrize("table", [True, False])
def test_a_front_of_two_costs_grows_and_is_better_than_that_of_one(table: bool) -> None:
    """At as many candidates: what one cost alone finds is not good in the other."""
    settings: dict[str, Any] = {"table": table, "population": 16, "iterations": 5}
    two, one = Memory(), Memory()
    run_search(front(SLOW, *COSTS, **settings), Toy(SLOW), two)
    run_search(front(SLOW, "params", **settings), Toy(SLOW), one)
    assert len(two.records) == len(one.records) > 50
    found, other = both(two.records), both(one.records)
    assert all(max(point[:2]) <= 0.95 for point in found.values())
    first = [found[r["id"]] for r in two.records if not r["generation"]]
    floor = min(point[-1] for point in first)
    grown = volume(list(found.values()), [0.95, 0.95], floor)
    assert grown > volume(first, [0.95, 0.95], floor)
    assert grown > volume(list(other.values()), [0.95, 0.95], floor)


def test_a_front_of_two_costs_is_the_same_again_and_where_it_was_interrupted() -> None:
    whole, pieces = Memory(), Memory()
    run_search(front(SLOW, *COSTS, iterations=3), Toy(SLOW), whole)
    pieces.records = [dict(r) for r in whole.records[:13]]
    run_search(front(SLOW, *COSTS, iterations=3), Toy(SLOW), pieces)
    timeless = [[json.dumps({**r, "seconds": 0}) for r in memory.records] for memory in (whole, pieces)]
    assert timeless[0] == timeless[1]


def test_three_costs_span_a_front() -> None:
    heads = Cost("heads", "heads", 0, lambda s, k: k if s.name == "attention" else 0)
    space = replace(SLOW, further=(*SLOW.further, Budget(40, cost=heads)))
    strategy, journal = front(space, "params", "time", "heads", population=21, iterations=2), Memory()
    run_search(strategy, Toy(space), journal)
    assert len(strategy.targets) > 9 and len(journal.records) > 30
    limits = dict(zip((m.name for m in space.measures), (end for _, end in space.windows), strict=True))
    for record in journal.records:
        spent = space.costs(Architecture.from_json(record["arch"], where="test"))
        assert all(spent[name] <= limit for name, limit in limits.items())


def test_candidates_race_against_what_costs_no_more() -> None:
    rng = np.random.default_rng(0)
    archs = [arch for arch in (SLOW.sample(rng) for _ in range(30)) if arch is not None]
    toy = Toy(SLOW)
    records = [
        {"id": a.id, "arch": a.to_json(), "score": toy.value(a), "terms": [-toy.value(a) + d for d in (0.1, 0.0, -0.1)]}
        for a in archs[:20]
    ]
    records[3] = {**records[3], "score": 99.0, "stopped": 1}
    bars = FrontBars(SLOW, COSTS)
    assert bars.of(archs[0]) is None  # nothing is known yet
    bars.begin(records)
    points = both(records)
    for arch in archs[20:]:
        spent, base = SLOW.costs(arch), SLOW.costs(SLOW.base)
        cheaper = [
            point[-1]
            for name, point in points.items()
            if name != records[3]["id"] and all(p <= spent[c] / base[c] for p, c in zip(point, COSTS, strict=False))
        ]
        bar = bars.of(arch)
        assert (bar is None) == (not cheaper)
        if bar is not None:
            assert bar.mean == pytest.approx(-max(cheaper))
    assert any(bars.of(arch) is not None for arch in archs[20:])
