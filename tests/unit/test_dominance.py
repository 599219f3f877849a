"""Dominance, hypervolume and the choice of elites, against their definitions and pymoo's."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracenas.strategies.dominance import Point, Terrain, elites, non_dominated, volume


@st.composite
def drawn(draw: st.DrawFn) -> tuple[int, dict[int, Point]]:
    """Points of one to three costs, all of them small whole numbers."""
    costs = draw(st.integers(1, 3))
    one = st.tuples(*[st.integers(0, 5)] * (costs + 1)).map(lambda point: tuple(map(float, point)))
    return costs, dict(enumerate(draw(st.lists(one, max_size=9))))


def dominates(a: Point, b: Point) -> bool:
    return a != b and all(x <= y for x, y in zip(a[:-1], b[:-1], strict=True)) and a[-1] >= b[-1]


def by_counting(points: list[Point], ends: list[float], floor: float) -> float:
    """The hypervolume in unit cells: costs are whole numbers."""
    total = 0.0
    for corner in np.ndindex(*(int(end) for end in ends)):
        served = [p[-1] for p in points if all(c <= x for c, x in zip(p[:-1], corner, strict=True))]
        total += max(max(served, default=floor) - floor, 0.0)
    return total


@given(drawn())
@settings(max_examples=200, deadline=None)
def test_what_nothing_dominates_is_kept_cheapest_first_and_once(case: tuple[int, dict[int, Point]]) -> None:
    _, points = case
    found = non_dominated(points)
    expected = {p for p in points.values() if not any(dominates(q, p) for q in points.values())}
    assert {points[name] for name in found} == expected and len(found) == len(expected)
    assert [points[name][:-1] for name in found] == sorted(points[name][:-1] for name in found)


@given(drawn())
@settings(max_examples=200, deadline=None)
def test_the_hypervolume_is_what_cells_count(case: tuple[int, dict[int, Point]]) -> None:
    costs, points = case
    ends = [6.0, 4.0, 5.0][:costs]
    assert volume(list(points.values()), ends, 2.0) == pytest.approx(by_counting(list(points.values()), ends, 2.0))


@pytest.mark.parametrize("costs", [1, 2, 3])
def test_the_hypervolume_is_pymoos(costs: int) -> None:
    indicators = pytest.importorskip("pymoo.indicators.hv")
    table = np.random.default_rng(costs).random((60, costs + 1))
    reference = np.array([0.9] * costs + [-0.2])
    expected = indicators.HV(ref_point=reference)(np.column_stack([table[:, :-1], -table[:, -1]]))
    assert volume([tuple(row) for row in table.tolist()], [0.9] * costs, 0.2) == pytest.approx(float(expected))


@given(drawn())
@settings(max_examples=100, deadline=None)
def test_a_newcomers_shares_are_what_it_adds(case: tuple[int, dict[int, Point]]) -> None:
    costs, points = case
    known, ends = list(points.values())[:-1], [6.0] * costs
    if not known:
        return
    newcomer = list(points.values())[-1]
    terrain = Terrain.of(known, ends, 1.0)
    shares = terrain.shares(newcomer[:-1])
    rivals = [*(point[-1] for point in known), 1.0]
    gained = sum(s * max(newcomer[-1] - rival, 0.0) for s, rival in zip(shares, rivals, strict=True))
    assert gained == pytest.approx(volume([*known, newcomer], ends, 1.0) - terrain.volume)


def test_elites_are_the_fronts_in_turn_and_of_the_last_what_adds_most() -> None:
    rng = np.random.default_rng(1)
    points = {n: tuple(row) for n, row in enumerate(rng.random((40, 3)).tolist())}
    first = non_dominated(points)
    assert elites(points, len(first), [1.0, 1.0], 0.0) == first
    second = non_dominated({n: p for n, p in points.items() if n not in first})
    assert elites(points, len(first) + len(second), [1.0, 1.0], 0.0) == [*first, *second]
    chosen = elites(points, 3, [1.0, 1.0], 0.0)
    best = max(volume([points[n] for n in some], [1.0, 1.0], 0.0) for some in combinations(first, 3))
    assert set(chosen) <= set(first)
    assert volume([points[n] for n in chosen], [1.0, 1.0], 0.0) >= (1 - 1 / np.e) * best
    single = elites(points, 1, [1.0, 1.0], 0.0)
    assert single == [max(first, key=lambda n: volume([points[n]], [1.0, 1.0], 0.0))]
    assert elites({}, 3, [1.0], 0.0) == []
