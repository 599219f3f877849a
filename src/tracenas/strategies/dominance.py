"""Which of several candidates are worth keeping where costs and score count: dominance and hypervolume.

A point is its costs, of which less is better, and its score, of which more is: (c₁, …, c_k, s). The hypervolume of a
set is that of what it dominates above a score s₀ and within ends e of the costs,

    V = ∫_{c ≤ e} max(0, best score of what costs at most c - s₀) dc,

on the grid of the points' own costs, on which the best score is constant. No torch.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

__all__ = ["Point", "Terrain", "elites", "non_dominated", "volume"]

N = TypeVar("N", bound=Hashable)
Floats = npt.NDArray[np.float64]
Point = tuple[float, ...]
"""Costs and, last, the score."""


def non_dominated(points: Mapping[N, Point]) -> list[N]:
    """Names of what nothing else costs as little as and scores as well, cheapest first; of equal points the first."""
    names = sorted(points, key=lambda name: (*points[name][:-1], -points[name][-1]))  # whoever dominates comes earlier
    table = np.array([_as_costs(points[name]) for name in names])
    kept: list[int] = []
    for place in range(len(names)):
        if not (table[kept] <= table[place]).all(axis=1).any():
            kept.append(place)
    return [names[place] for place in kept]


def volume(points: Sequence[Point], ends: Sequence[float], floor: float) -> float:
    """The hypervolume of points above the score `floor` and within `ends`."""
    return Terrain.of(points, ends, floor).volume


def elites(points: Mapping[N, Point], count: int, ends: Sequence[float], floor: float) -> list[N]:
    """The `count` best: front by front (non-dominated sorting), and of the last what adds most to the hypervolume.

    What adds most to those that are chosen comes next, again and again: at least 1 - 1/e of what any choice of as many
    would add (Nemhauser, Wolsey and Fisher 1978).
    """
    left, chosen = dict(points), list[N]()
    while left and len(chosen) < count:
        front = non_dominated(left)
        if len(front) > count - len(chosen):
            front = _adding_most(points, chosen, front, count - len(chosen), ends, floor)
        chosen += front
        left = {name: point for name, point in left.items() if name not in front}
    return chosen


def _adding_most(
    points: Mapping[N, Point], chosen: Sequence[N], front: Sequence[N], count: int, ends: Sequence[float], floor: float
) -> list[N]:
    taken: list[N] = []
    for _ in range(count):
        there = [points[name] for name in (*chosen, *taken)]
        left = [name for name in front if name not in taken]
        taken.append(max(left, key=lambda name: volume([*there, points[name]], ends, floor)))
    return taken


@dataclass(frozen=True)
class Terrain:
    """Who is best where: the grid of some points' costs, and in every cell the best that costs at most as much.

    Args:
        edges: per cost, of the cells, ascending from 0 to the end.
        owner: int, [cells of cost 1, …]: place of the best point, -1 where there is none above the floor.
        scores: of the points.
        floor: the score that a volume stands on.
    """

    edges: tuple[Floats, ...]
    owner: npt.NDArray[np.int64]
    scores: Floats
    floor: float

    @classmethod
    def of(cls, points: Sequence[Point], ends: Sequence[float], floor: float) -> "Terrain":
        """Of some points; those beyond an end, or not above the floor, have no part in it."""
        scores = np.array([point[-1] for point in points], dtype=np.float64)
        table = np.array([point[:-1] for point in points], dtype=np.float64).reshape(len(points), len(ends))
        inside = np.flatnonzero((table <= np.array(ends)).all(axis=1) & (scores > floor))
        edges = tuple(np.unique(np.concatenate([[0.0], table[inside, axis], [end]])) for axis, end in enumerate(ends))
        owner = np.full(tuple(len(edge) - 1 for edge in edges), -1, dtype=np.int64)
        for place in inside[np.argsort(scores[inside], kind="stable")]:  # the better ones come later
            at = (np.searchsorted(edge, cost) for edge, cost in zip(edges, table[place], strict=True))
            owner[tuple(slice(int(first), None) for first in at)] = place
        return cls(edges, owner, scores, floor)

    @property
    def volume(self) -> float:
        """The points' hypervolume."""
        heights = np.append(self.scores, self.floor)[self.owner] - self.floor  # -1: the last
        return float(self._summed(heights, [np.diff(edge) for edge in self.edges]))

    def shares(self, costs: Sequence[float]) -> Floats:
        """What would be a newcomer's of these costs, by who is best there: [points + 1], the last of nobody."""
        pairs = zip(self.edges, costs, strict=True)
        lengths = [np.maximum(edge[1:] - np.maximum(edge[:-1], cost), 0.0) for edge, cost in pairs]
        cells, count = lengths[0], len(self.scores) + 1
        for length in lengths[1:]:
            cells = np.multiply.outer(cells, length)
        found: Floats = np.bincount(self.owner.ravel() % count, weights=cells.ravel(), minlength=count).astype(
            np.float64
        )
        return found

    @staticmethod
    def _summed(heights: Floats, lengths: Sequence[Floats]) -> float:
        for length in reversed(lengths):
            heights = heights @ length
        return float(heights)


def _as_costs(point: Point) -> list[float]:
    return [*point[:-1], -point[-1]]
