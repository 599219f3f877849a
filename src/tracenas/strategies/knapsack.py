"""One level per sub-block at the least cost within several budgets: the problem, its Lagrangian start and bound.

    min Σ_i c_i[l_i]    subject to    lower ≤ Σ_i w_i[l_i] ≤ upper    (component by component, one per budget)

(multiple-choice knapsack, Kellerer, Pferschy and Pisinger 2004, chapter 11), with what a search space asks of depth.
With multipliers μ ≥ 0 of the upper limits the blocks fall apart:

    L(μ) = Σ_b min over the block's levels of Σ_i (c_i[l] + μ · w_i[l]) - μ · upper ≤ the optimum.

What attains the minimum, moved into the budgets by single levels and filled up, is the start. No torch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

__all__ = ["Item", "Problem", "Start", "by_price", "lagrangian_start", "repaired"]

Floats = npt.NDArray[np.float64]

_ROUNDS = 3
"""Turns in which several budgets get their prices."""


@dataclass(frozen=True)
class Item:
    """A sub-block and its levels, in the order of their widths; level 0 is the bypass.

    Args:
        block: index of its block.
        costs: float64 [L].
        weights: float64 [L, budgets].
        remains: whether it is only bypassed together with its block.
    """

    block: int
    costs: Floats
    weights: Floats
    remains: bool = False


@dataclass(frozen=True)
class Problem:
    """Levels to choose, one per item.

    Args:
        items: those of a block side by side.
        lower, upper: float64 [budgets]; what every architecture has is taken off.
        stacks: of every block, the stack it stands in; every stack keeps a block at least.
        protected: blocks that are not skipped.
        min_depth: blocks that are not skipped, at least.
        together: whether the sub-blocks of a block are bypassed together only.
    """

    items: tuple[Item, ...]
    lower: Floats
    upper: Floats
    stacks: tuple[str, ...]
    protected: frozenset[int] = frozenset()
    min_depth: int = 1
    together: bool = True

    @cached_property
    def members(self) -> dict[int, list[int]]:
        """Items of every block that has any."""
        places: dict[int, list[int]] = {}
        for place, item in enumerate(self.items):
            places.setdefault(item.block, []).append(place)
        return places

    @cached_property
    def skips(self) -> dict[str, int]:
        """How many blocks with items may be skipped, in all ('*') and of every stack."""
        present = [self.stacks[block] for block in self.members]
        limits = {stack: present.count(stack) - 1 for stack in set(present)}
        return {**limits, "*": len(present) - self.min_depth}

    @cached_property
    def stacked(self) -> "_Stacked":
        """All items side by side."""
        return _Stacked.of(self)

    @cached_property
    def spread(self) -> float:
        """What all costs can differ by, together."""
        return sum(float(np.ptp(item.costs)) for item in self.items)

    def cost(self, levels: Sequence[int]) -> float:
        """Of a choice."""
        return float(sum(item.costs[level] for item, level in zip(self.items, levels, strict=True)))

    def weight(self, levels: Sequence[int]) -> Floats:
        """Of a choice, [budgets]."""
        if not self.items:
            return np.zeros(len(self.upper))
        chosen: Floats = self.stacked.weights[self.stacked.rows, levels]
        total: Floats = np.cumsum(chosen, axis=0)[-1]  # one after the other: sums of any length round alike
        return total

    def within(self, levels: Sequence[int]) -> bool:
        """Whether a choice meets the budgets."""
        weight = self.weight(levels)
        return bool((weight <= self.upper).all() and (weight >= self.lower).all())


@dataclass(frozen=True)
class _Stacked:
    """The items of a problem as arrays of equal length: a price is tried on all of them at once.

    Args:
        costs: float64 [items, levels], infinite behind an item's last level.
        weights: float64 [items, levels, budgets].
        rows: 0 … items - 1.
        block: of every item, the place of its block among `members`.
        stays: whether the item is not bypassed while its block is there.
        free: per block with items, whether it may be skipped.
    """

    costs: Floats
    weights: Floats
    rows: npt.NDArray[np.intp]
    block: npt.NDArray[np.intp]
    stays: npt.NDArray[np.bool_]
    free: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, problem: Problem) -> "_Stacked":
        """Those of a problem."""
        count, levels = len(problem.items), max(len(item.costs) for item in problem.items)
        costs, weights = np.full((count, levels), np.inf), np.zeros((count, levels, len(problem.upper)))
        for i, item in enumerate(problem.items):
            costs[i, : len(item.costs)], weights[i, : len(item.costs)] = item.costs, item.weights
        places = {block: place for place, block in enumerate(problem.members)}
        return cls(
            costs,
            weights,
            np.arange(count),
            np.array([places[item.block] for item in problem.items]),
            np.array([problem.together or item.remains for item in problem.items]),
            np.array([block not in problem.protected for block in problem.members]),
        )

    def by_block(self, values: Floats) -> Floats:
        """Sums over the items of every block."""
        sums: Floats = np.bincount(self.block, values, minlength=len(self.free)).astype(np.float64)
        return sums

    def priced(self, multipliers: Floats) -> Floats:
        """c + μ · w of every level."""
        price: Floats = self.weights[:, :, 0] * multipliers[0]
        for budget in range(1, len(multipliers)):
            price = price + self.weights[:, :, budget] * multipliers[budget]
        return self.costs + price


@dataclass(frozen=True)
class Start:
    """What the multipliers give.

    Args:
        levels: a feasible choice; None if single moves lead to none.
        bound: no choice costs less.
    """

    levels: tuple[int, ...] | None
    bound: float


def lagrangian_start(problem: Problem, multipliers: Floats) -> Start:
    """The best levels under a price of every budget, repaired and filled.

    Args:
        multipliers: μ, float64 [budgets], not negative.
    """
    levels, value = _relaxed(problem, multipliers)
    feasible = repaired(problem, levels)
    return Start(None if feasible is None else tuple(feasible), float(value - multipliers @ problem.upper))


def by_price(problem: Problem, halvings: int = 30) -> tuple[int, ...] | None:
    """A good choice in milliseconds: the lowest prices whose best levels meet the budgets, filled up.

    For one budget this is the Lagrangian start at the dual of the relaxation. Several get their prices in turns, each
    the lowest at which its own is met under the prices of the others, so that what does not bind costs nothing. None
    where no price leads to a choice.

    Args:
        halvings: of the interval in which a price is looked for; a third of them for each of several.
    """
    count = len(problem.upper)
    prices = np.zeros(count)
    for _ in range(1 if count == 1 else _ROUNDS):
        for budget in range(count):
            prices[budget] = _lowest(problem, prices, budget, halvings if count == 1 else halvings // 3)
    if count > 1:  # the last prices are of the last budget: what they leave exceeded is met by raising all alike
        prices *= _factor(problem, prices, halvings // 3)
    return lagrangian_start(problem, prices).levels


def _lowest(problem: Problem, prices: Floats, budget: int, halvings: int) -> float:
    """The lowest price of one budget at which it is met, beside the prices of the others."""
    scale = 1.0 / max(abs(float(problem.upper[budget])), 1.0)

    def fits(price: float) -> bool:
        tried = prices.copy()
        tried[budget] = price * scale
        return bool(problem.weight(_relaxed(problem, tried)[0])[budget] <= problem.upper[budget])

    return 0.0 if fits(0.0) else _smallest(fits, problem.spread, halvings) * scale


def _factor(problem: Problem, prices: Floats, halvings: int) -> float:
    """By how much prices are to be raised for every budget to be met; 1 where they are."""

    def fits(excess: float) -> bool:
        return bool((problem.weight(_relaxed(problem, (1 + excess) * prices)[0]) <= problem.upper).all())

    return 1.0 if fits(0.0) else 1 + _smallest(fits, 1.0, halvings)


def _smallest(fits: Callable[[float], bool], guess: float, halvings: int) -> float:
    """The smallest number at which something holds that goes on holding above it."""
    low, high = 0.0, guess or 1.0
    while not fits(high) and high < 1e6 * (guess or 1.0):
        low, high = high, 4 * high
    for _ in range(halvings):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def _relaxed(problem: Problem, multipliers: Floats) -> tuple[list[int], float]:
    """The best levels under a price of every budget, whatever they weigh, and what they come to, priced."""
    all_items = problem.stacked
    priced = all_items.priced(multipliers)
    active = _active(problem, priced)
    values = all_items.by_block(priced[all_items.rows, active])
    skipped = all_items.by_block(priced[:, 0])
    gone = all_items.free & (skipped < values)
    levels: list[int] = np.where(gone[all_items.block], 0, active).tolist()
    if gone.any():
        members = list(problem.members.items())
        regrets = {
            members[b][0]: (float(values[b] - skipped[b]), active[members[b][1]].tolist()) for b in np.flatnonzero(gone)
        }
        _restore_depth(problem, regrets, levels)
    return levels, float(np.cumsum(np.where(gone, skipped, values))[-1])


def _active(problem: Problem, priced: Floats) -> npt.NDArray[np.intp]:
    """The cheapest levels of blocks that are not skipped, one per item."""
    all_items = problem.stacked
    allowed = priced.copy()
    allowed[all_items.stays, 0] = np.inf
    levels: npt.NDArray[np.intp] = allowed.argmin(axis=1)
    if all_items.stays.all():
        return levels
    empty = all_items.by_block(levels.astype(np.float64)) == 0
    for members in (m for m, is_empty in zip(problem.members.values(), empty, strict=True) if is_empty):
        best = 1 + priced[members, 1:].argmin(axis=1)
        extra = priced[members, best] - priced[members, 0]
        place = int(np.argmin(extra))
        levels[members[place]] = best[place]
    return levels


def _restore_depth(problem: Problem, regrets: dict[int, tuple[float, list[int]]], levels: list[int]) -> None:
    """Take blocks back, those of the least regret first, until no more are skipped than may be."""
    left = dict(problem.skips)
    for block in sorted(regrets, key=lambda b: (-regrets[b][0], b)):
        stack = problem.stacks[block]
        if left["*"] > 0 and left[stack] > 0:
            left["*"] -= 1
            left[stack] -= 1
        else:
            for i, level in zip(problem.members[block], regrets[block][1], strict=True):
                levels[i] = level


def repaired(problem: Problem, levels: list[int]) -> list[int] | None:
    """Down by single levels while a budget is exceeded, then up while they fit; None if that leads nowhere.

    No sub-block is bypassed and none comes back. `levels` is the caller's to lose.
    """
    weight = problem.weight(levels)
    scale = np.maximum(np.abs(problem.upper), 1.0)
    while (excess := weight > problem.upper).any():
        best = None
        for i, level in enumerate(levels):
            if level < 2:
                continue
            item = problem.items[i]
            relief = ((item.weights[level] - item.weights[level - 1]) / scale)[excess].sum()
            if relief <= 0:
                continue
            price = (item.costs[level - 1] - item.costs[level]) / relief
            if best is None or price < best[0]:
                best = (price, i)
        if best is None:
            return None
        weight += _step(problem, levels, best[1], -1)
    while True:
        best = None
        for i, level in enumerate(levels):
            item = problem.items[i]
            if level == 0 or level + 1 == len(item.costs):
                continue
            more = item.weights[level + 1] - item.weights[level]
            gain = item.costs[level] - item.costs[level + 1]
            if (weight + more > problem.upper).any() or (gain <= 0 and (weight >= problem.lower).all()):
                continue
            worth = gain / max(float((more / scale).sum()), 1e-300)
            if best is None or worth > best[0]:
                best = (worth, i)
        if best is None:
            return levels if (weight >= problem.lower).all() else None
        weight += _step(problem, levels, best[1], 1)


def _step(problem: Problem, levels: list[int], place: int, by: int) -> Floats:
    """Move one item by one level; the change of the weights."""
    before = problem.items[place].weights[levels[place]]
    levels[place] += by
    change: Floats = problem.items[place].weights[levels[place]] - before
    return change
