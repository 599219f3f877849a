"""The score as a sensitivity table says it, corrected by what candidates scored: what is worth measuring next.

    score ≈ a - Σ_s θ_s r_s(width) - Σ_j θ_j z_j

r_s is the table's predicted rise of the loss of sub-block s at its width, θ_s near one common factor for all of them
(about 1 where the score is minus a loss), and z_j, expected to be worth nothing, are rises that may add up otherwise
than the table can see: those of bypassed sub-blocks, kind by kind, of sub-blocks of one block that both lose units, and
of neighbouring blocks that both do (the geometric mean of the two). All are in nats per token. A second-order term says
nothing of what rises by more than about a nat (the bypass of a block may be predicted to cost 30): r enters as 1 - e⁻ʳ.
No torch.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace

import numpy as np

from tracenas.space.architecture import Architecture
from tracenas.space.search_space import SearchSpace
from tracenas.strategies.knapsack import Floats, Item, by_price
from tracenas.strategies.posterior import Posterior, fit
from tracenas.strategies.solver import bounds, problem_in_space

__all__ = ["Tabled"]

_NEAREST, _ENOUGH = 12, 128
"""Of the scores around which a model is to be right: how many count nearly in full, and how many are looked at."""
_LEAST = 0.05
"""A sub-block's sampled multiplier at least, in the common factor: units are worth something everywhere."""


Scored = tuple[float, Architecture]


class Tabled:
    """What is thought of the candidates of a space that has a table, before and after some have scores.

    Args:
        space: with its budget.
        rises: per (block, sub-block): the predicted rise at 0 units and at each of `choices()`.
    """

    def __init__(self, space: SearchSpace, rises: Mapping[tuple[int, str], Sequence[float]]) -> None:
        self.space = space
        self.problem = problem_in_space(space, rises)
        slots = [(i, j, s) for i, layer in enumerate(space.layers) for j, s in enumerate(layer.sub_blocks) if s.units]
        self._slots = [(i, j, {width: level for level, width in enumerate((0, *s.choices()))}) for i, j, s in slots]
        kinds = sorted({s.name for _, _, s in slots})
        self._kind = np.array([kinds.index(s.name) for _, _, s in slots])
        count, further = len(slots), len(kinds) + 2
        self._expected = np.concatenate([np.ones(count), np.zeros(further)])
        self._known: dict[str, Floats] = {}
        self._best: Floats = np.zeros(count + further)
        self.posterior: Posterior = fit(self._best[None], np.zeros(1), self._expected)

    def features(self, arch: Architecture) -> Floats:
        """Minus the rises: of every sub-block, of those bypassed per kind, within blocks, between neighbours."""
        if arch.id not in self._known:
            self._known[arch.id] = self._features(arch)
        return self._known[arch.id]

    def _features(self, arch: Architecture) -> Floats:
        counts = self.space.counts(arch)
        levels = [places[counts[i][j]] for i, j, places in self._slots]
        rises = np.array([item.costs[level] for item, level in zip(self.problem.items, levels, strict=True)])
        rises = -np.expm1(-np.maximum(rises, 0.0))
        gone = np.bincount(self._kind, rises * (np.array(levels) == 0), minlength=self._kind.max() + 1)
        plain: list[float] = rises.tolist()
        of_block = [[plain[member] for member in members] for members in self.problem.members.values()]
        within = sum(math.sqrt(a * b) for row in of_block for place, a in enumerate(row) for b in row[:place])
        beside = sum(math.sqrt(a * b) for a, b in itertools.pairwise([sum(row) for row in of_block]))
        return -np.concatenate([rises, gone, [within, beside]])

    def learn(self, scored: Sequence[Scored]) -> None:
        """Take these scores for all that is known.

        The further a score is from the best, the more loosely it is fitted: v = 1 + (gap / median gap)².
        """
        self._known = {arch.id: self.features(arch) for _, arch in scored}  # without those that were only drawn
        scores = np.array([score for score, _ in scored])
        gaps = scores.max() - scores
        self._fit(scored, 1 + (gaps / (np.median(gaps) or 1.0)) ** 2, np.inf)

    def near(self, scored: Sequence[Scored], score: float) -> "Tabled":
        """A model that is right around a score, of candidates that differ in size, too.

        What a unit is worth depends on what else is left: v = 1 + (gap / gap of the twelfth nearest)⁴.
        """
        found = copy(self)
        nearest = sorted(scored, key=lambda pair: abs(pair[0] - score))[:_ENOUGH]
        gaps = np.array([abs(other - score) for other, _ in nearest])
        found._fit(nearest, 1 + (gaps / (gaps[min(_NEAREST, len(gaps)) - 1] or 1.0)) ** 4)
        return found

    def _fit(self, scored: Sequence[Scored], looseness: Floats, most: float = 2.0) -> None:
        """Fits, and takes the most promising of those that are no looser than `most`."""
        x, scores = np.stack([self.features(arch) for _, arch in scored]), np.array([score for score, _ in scored])
        self.posterior = fit(x, scores, self._expected, looseness)
        known = np.where(looseness <= most, x @ self.posterior.mean, -np.inf)
        self._best = x[int(np.argmax(known))]  # the best score alone is partly luck

    def expected(self, arch: Architecture) -> float:
        """The expected score."""
        return self.posterior(self.features(arch))

    def improvement(self, arch: Architecture) -> float:
        """What it is expected to gain on the most promising that has a score."""
        return self.posterior.improvement(self.features(arch), self._best)

    def proposed(self, arch: Architecture) -> None:
        """It is to be measured: what it will tell is not worth asking again until then."""
        self.posterior = self.posterior.awaiting(self.features(arch), self._best)

    def gain(self, arch: Architecture, other: Architecture) -> float:
        """What it is expected to gain on another."""
        return self.posterior.improvement(self.features(arch), self.features(other))

    def answer(self, rng: np.random.Generator | None, space: SearchSpace | None = None) -> Architecture | None:
        """The best architecture of one plausible table: the solver's answer under sampled multipliers (Thompson).

        What adds up over sub-blocks is solved, bypasses included; None where the solver finds nothing.

        Args:
            rng: None: of the expected table.
            space: with other limits of the same budgets; None: those of this one.
        """
        drawn = self.posterior.mean if rng is None else self.posterior.sample(rng)
        theta = drawn / self.posterior.unit
        items = [
            _scaled(item, max(multiplier, _LEAST), theta[len(self._slots) + kind])
            for item, multiplier, kind in zip(self.problem.items, theta, self._kind, strict=False)
        ]
        lower, upper = (self.problem.lower, self.problem.upper) if space is None else bounds(space)
        levels = by_price(replace(self.problem, items=tuple(items), lower=lower, upper=upper))
        if levels is None:
            return None
        counts = [[0] * len(layer.sub_blocks) for layer in self.space.layers]
        for (i, j, places), level in zip(self._slots, levels, strict=True):
            counts[i][j] = list(places)[level]
        return self.space.build(counts)


def _scaled(item: Item, multiplier: float, gone: float) -> Item:
    costs = multiplier * item.costs
    costs[0] = max(costs[0] + gone * item.costs[0], costs[1])
    return replace(item, costs=costs)
