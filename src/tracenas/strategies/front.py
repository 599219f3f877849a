"""All sizes in one search: the front of scores against one cost (ours).

Sizes are a grid of limits between the smallest and the budget, and a candidate stands at every limit that it meets.
What is known of one size serves all others: there is one journal and one model of the score (the sensitivity table's
sum as the scores so far correct it; without a table a regression on the widths).

Generation 0 has the table's own answer at every limit (uniform ones without a table) and the starts. Later every child
is made for one limit, drawn in proportion to what a new candidate there is expected to gain on the best that meets it:
where the front is thin. Of the solver's answers under sampled corrections and of local moves of the best candidates
nearby it is the one of most expected gain at that limit.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np

from tracenas.space.architecture import Architecture
from tracenas.space.search_space import SearchSpace
from tracenas.strategies.draw import Draws
from tracenas.strategies.protocol import Proposal
from tracenas.strategies.settings import Prior, SearchSettings
from tracenas.strategies.strategy import Strategy, feasible
from tracenas.strategies.surrogate import Surrogate, features, fit
from tracenas.strategies.tabled import Tabled

__all__ = ["LIMITS", "Front", "non_dominated", "volume"]

LIMITS = 16
"""Sizes of the grid."""
ANSWERS, MOVES = 6, 32
"""Solver's answers and local moves among which a child is chosen."""
_LEAST = 0.1
"""What a limit's chance is of the largest one's at least."""

Scored = tuple[float, Architecture]


class Front(Strategy[Architecture]):
    """See the module.

    Args:
        space: with the upper end of the front for its first budget; others hold at every size.
        smallest: the lower end, in what the first budget counts.
    """

    space: SearchSpace

    def __init__(
        self,
        space: SearchSpace,
        settings: SearchSettings,
        *,
        smallest: int,
        prior: Prior | None = None,
        starts: Sequence[Architecture] = (),
    ) -> None:
        super().__init__(space, settings, prior=prior, starts=starts[: settings.population])
        count = min(LIMITS, settings.population)
        ends = np.linspace(smallest, space.window[1], count).tolist()
        self.limits = [round(end) for end in ends]
        self._tabled = None if prior is None or prior.rises is None else Tabled(space, prior.rises)
        self._surrogate: Surrogate | None = None
        self._measured: list[Scored] = []

    @cached_property
    def _spaces(self) -> list[SearchSpace]:
        return [self.space.at(limit) for limit in self.limits]

    def _initial(self, draws: Draws[Architecture], rng: np.random.Generator) -> None:
        for space in self._spaces:
            draws.offer(feasible(self._plain(space)))
        for start in self._starts:
            if len(draws) < self.settings.population:
                draws.offer(Proposal(start))
        draws.fill(self.settings.population, lambda: self._drawn(rng))

    def _plain(self, space: SearchSpace) -> Architecture | None:
        """What the table makes of a limit, or equal ratios."""
        answer = None if self._tabled is None else self._tabled.answer(None, space)
        return answer if answer is not None and not space.place(space.counts(answer)) else space.uniform()

    def _drawn(self, rng: np.random.Generator) -> Proposal[Architecture] | None:
        """A move of what is plain at some limit, for places that are left in generation 0."""
        space = self._spaces[int(rng.integers(len(self._spaces)))]
        plain = self._plain(space)
        return None if plain is None else feasible(space.neighbour(plain, rng, sigma=self.settings.sigma))

    def _following(self, draws: Draws[Architecture], rng: np.random.Generator) -> None:
        chances = self._chances(rng)
        draws.fill(self.settings.children, lambda: self._child(int(rng.choice(len(chances), p=chances)), rng))

    def _chances(self, rng: np.random.Generator) -> np.ndarray:
        """Of every limit, in proportion to what is expected to be gained there."""
        gains = np.zeros(len(self.limits))
        for place, space in enumerate(self._spaces):
            best = self._best_at(place)
            for arch in (self._plain(space), self._answer(space, rng)):
                if arch is not None and arch.id not in self._seen:
                    gains[place] = max(gains[place], math.inf if best is None else self._gain(arch, best))
        known = gains[np.isfinite(gains)].max(initial=0.0) or 1.0
        gains = np.maximum(np.where(np.isfinite(gains), gains, known), _LEAST * known)
        chances: np.ndarray = gains / gains.sum()
        return chances

    def _child(self, place: int, rng: np.random.Generator) -> Proposal[Architecture] | None:
        """The most promising candidate for a limit."""
        best = self._best_at(place)
        if best is None:
            return self._drawn(rng)
        pool = [arch for arch in self._pool(place, rng) if arch.id not in self._seen]
        if not pool:
            return None
        chosen = max(pool, key=lambda arch: self._gain(arch, best))
        if self._tabled is not None:
            self._tabled.proposed(chosen)
        return Proposal(chosen)

    def _pool(self, place: int, rng: np.random.Generator) -> Iterator[Architecture]:
        """Answers and moves within a limit."""
        space, settings = self._spaces[place], self.settings
        near = [self._best_at(p) for p in range(max(0, place - 1), min(len(self.limits), place + 2))]
        parents = [arch for arch in near if arch is not None]
        for _ in range(ANSWERS):
            answer = self._answer(space, rng)
            if answer is not None and not space.place(space.counts(answer)):
                yield answer
        for _ in range(MOVES):
            parent = space.repair(parents[int(rng.integers(len(parents)))], rng)
            moved = None if parent is None else self._move(space, parent, rng)
            if moved is not None:
                yield moved
            elif parent is not None and settings.sigma:
                yield parent

    def _move(self, space: SearchSpace, parent: Architecture, rng: np.random.Generator) -> Architecture | None:
        sigma, depth = self.settings.sigma, self.settings.depth_mutation
        if self._tabled is not None or rng.random() < 0.5:
            return space.trade(parent, rng, sigma=sigma, depth=depth)
        return space.neighbour(parent, rng, sigma=sigma)

    def _answer(self, space: SearchSpace, rng: np.random.Generator) -> Architecture | None:
        return None if self._tabled is None else self._tabled.answer(rng, space)

    def _learn(self, scored: list[Scored]) -> None:
        self._measured += [(score, arch) for score, arch in scored if math.isfinite(score)]
        self._measured.sort(key=lambda pair: -pair[0])
        if self._tabled is not None and self._measured:
            self._tabled.learn(self._measured)
        elif self._measured:
            ratios = np.stack([features(self.space.ratios(arch)) for _, arch in self._measured])
            self._surrogate = fit(ratios, np.array([score for score, _ in self._measured]))

    def _best_at(self, place: int) -> Architecture | None:
        """The best candidate that meets a limit."""
        limit = self.limits[place]
        return next((arch for _, arch in self._measured if self.space.cost(arch) <= limit), None)

    def _gain(self, arch: Architecture, best: Architecture) -> float:
        """What a candidate is expected to gain on the best at its limit."""
        if self._tabled is not None:
            return self._tabled.gain(arch, best)
        assert self._surrogate is not None
        one, other = (self._surrogate(features(self.space.ratios(a))) for a in (arch, best))
        return max(one - other, 0.0)


def non_dominated(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names of what nothing else is cheaper than and scores as well, cheapest first; points are (cost, score)."""
    found: list[str] = []
    highest = -math.inf
    for name, (_, score) in sorted(points.items(), key=lambda item: (item[1][0], -item[1][1])):
        if score > highest:
            found.append(name)
            highest = score
    return found


def volume(points: Sequence[tuple[float, float]], cost: float, score: float) -> float:
    """The hypervolume of a front above `score` and below `cost`: ∫ max(0, best score within c - score) dc."""
    total, best, last = 0.0, score, 0.0
    for at, value in sorted(point for point in points if point[0] <= cost):
        total += (at - last) * (best - score)
        best, last = max(best, value), at
    return total + (cost - last) * (best - score)
