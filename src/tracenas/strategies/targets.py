"""Limits that a front's candidates are made for: of every cost alone, and of several where these pull apart.

A front of one cost has them at round shares of the base's, as these are what is asked for. Of several costs: under a
limit on one of them alone the best architecture has what it has of the others. Let c_j(i, x) be the cost j of the best
whose cost i is at most x. Where a limit x of cost i comes with one of cost j, the latter lies half-way between
c_j(i, x) and the least that makes sense beside it: the limit of j alone under which the best has x of cost i.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from tracenas.space.architecture import Architecture
from tracenas.space.search_space import SearchSpace

__all__ = ["round_limits", "targets"]

Floats = npt.NDArray[np.float64]
_STEPS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2)
"""Shares of the base's cost that limits may be multiples of."""
_APART = 0.01
"""Half the way, as a share of the cost, below which two costs are as good as one."""


@dataclass(frozen=True)
class _Curve:
    """Limits of one cost alone, ascending, and all costs of the best under each, [limits, costs]."""

    limits: list[int]
    costs: Floats


def round_limits(smallest: int, largest: int, base: int, count: int) -> list[int]:
    """Both ends and between them the multiples of one share of the base's cost, the finest that makes at most `count`.

    Evenly spread ones where no share does.
    """
    for step in _STEPS:
        multiples = [int(step * n * base + 1e-6) for n in range(1, round(1 / step))]  # rounded as budgets are
        found = [smallest, *(limit for limit in multiples if smallest < limit < largest), largest]
        if len(found) <= count:
            return found
    return [round(limit) for limit in np.linspace(smallest, largest, max(count, 2)).tolist()]


def targets(
    space: SearchSpace,
    costs: Sequence[str],
    smallest: int,
    count: int,
    best: Callable[[SearchSpace], Architecture | None],
) -> list[SearchSpace]:
    """The space under every choice of limits, about `count` of them; each has an architecture.

    Args:
        space: with the upper ends.
        costs: names of its budgets that the front spans.
        smallest: lower end of the first of them.
        best: architecture of a space, as far as it can be said beforehand.
    """
    ends = space.limits
    if len(costs) == 1:
        (name,) = costs
        limits = round_limits(smallest, ends[name], space.costs(space.base)[name], count)
        return [space.within({name: limit}) for limit in limits]
    each = max(2, count // (2 ** len(costs) - 1))
    curves: list[_Curve] = []
    low: float = smallest
    for name in costs:
        if curves:
            low = min(float(curves[0].costs[0, len(curves)]), ends[name])
        curves.append(_curve(space, costs, name, np.linspace(low, ends[name], each), best))
    found = [{name: limit} for name, curve in zip(costs, curves, strict=True) for limit in curve.limits]
    for size in range(2, len(costs) + 1):
        for places in combinations(range(len(costs)), size):
            found += _between(costs, curves, places)
    return [one for one in map(space.within, found) if best(one) is not None]


def _curve(
    space: SearchSpace,
    costs: Sequence[str],
    name: str,
    limits: Floats,
    best: Callable[[SearchSpace], Architecture | None],
) -> _Curve:
    rounded = [round(limit) for limit in limits.tolist()]
    answers = [(limit, best(space.within({name: limit}))) for limit in rounded]
    there = [(limit, space.costs(arch)) for limit, arch in answers if arch is not None]
    return _Curve(
        [limit for limit, _ in there], np.array([[spent[c] for c in costs] for _, spent in there], dtype=float)
    )


def _between(costs: Sequence[str], curves: Sequence[_Curve], places: Sequence[int]) -> list[dict[str, int]]:
    """Limits of the first of some costs, and of the others half-way to what makes sense beside it."""
    first, *others = places
    found = []
    for row, limit in enumerate(curves[first].limits):
        limits, apart = {costs[first]: limit}, True
        for other in others:
            spent = float(curves[first].costs[row, other])
            order = np.argsort(curves[other].costs[:, first])
            least = float(np.interp(limit, curves[other].costs[order, first], np.array(curves[other].limits)[order]))
            limits[costs[other]] = round((spent + least) / 2)
            apart &= spent - least > 2 * _APART * spent
        if apart:
            found.append(limits)
    return found
