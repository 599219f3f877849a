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
    def spread(self) -> float:
        """What all costs can differ by, together."""
        return sum(float(np.ptp(item.costs)) for item in self.items)

    def cost(self, levels: Sequence[int]) -> float:
        """Of a choice."""
        return float(sum(item.costs[level] for item, level in zip(self.items, levels, strict=True)))

    def weight(self, levels: Sequence[int]) -> Floats:
        """Of a choice, [budgets]."""
        total = np.zeros(len(self.upper))
        for item, level in zip(self.items, levels, strict=True):
            total += item.weights[level]
        return total

    def within(self, levels: Sequence[int]) -> bool:
        """Whether a choice meets the budgets."""
        weight = self.weight(levels)
        return bool((weight <= self.upper).all() and (weight >= self.lower).all())


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
    priced = [item.costs + item.weights @ multipliers for item in problem.items]
    levels = [0] * len(problem.items)
    total, regrets = 0.0, {}
    for block, members in problem.members.items():
        active = _active(problem, priced, members)
        value = sum(priced[i][level] for i, level in zip(members, active, strict=True))
        skipped = sum(priced[i][0] for i in members)
        if block not in problem.protected and skipped < value:
            regrets[block] = (value - skipped, active)
            value = skipped
        else:
            for i, level in zip(members, active, strict=True):
                levels[i] = level
        total += value
    _restore_depth(problem, regrets, levels)
    return levels, float(total)


def _active(problem: Problem, priced: Sequence[Floats], members: Sequence[int]) -> list[int]:
    """The cheapest levels of a block that is not skipped."""
    chosen = []
    for i in members:
        first = 1 if problem.together or problem.items[i].remains else 0
        chosen.append(first + int(priced[i][first:].argmin()))
    if not any(chosen):
        best = [1 + int(priced[i][1:].argmin()) for i in members]
        extra = [priced[i][level] - priced[i][0] for i, level in zip(members, best, strict=True)]
        place = int(np.argmin(extra))
        chosen[place] = best[place]
    return chosen


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
