"""Evolution by small moves within the budget, of which a model of the scores so far picks those to measure."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar, cast

import numpy as np

from tracenas.strategies.evolution import Evolution
from tracenas.strategies.protocol import Candidate, Proposal, Space
from tracenas.strategies.settings import Prior, SearchSettings
from tracenas.strategies.strategy import feasible
from tracenas.strategies.surrogate import Surrogate, features, fit
from tracenas.strategies.tabled import Tabled

__all__ = ["Guided", "LocalSpace"]

C = TypeVar("C", bound=Candidate)
DRAWS = 64
"""Children drawn for one that is measured."""
FEWEST = 6
"""Candidates that the regression is fitted to at least, where so many have a score."""
ANSWERS = 8
"""Solver's answers among them, where there is a table."""


class LocalSpace(Space[C], Protocol[C]):
    """A space whose candidates have neighbours."""

    def neighbour(self, arch: C, rng: np.random.Generator, *, sigma: float = ...) -> C | None:
        """A candidate of the budget near `arch`, as large as the budget allows; None if that is impossible."""
        ...

    def trade(self, arch: C, rng: np.random.Generator, *, sigma: float = ..., depth: float = ...) -> C | None:
        """A candidate of the budget that differs from `arch` in two to four sub-blocks; None if none was drawn."""
        ...

    def exchange(self, a: C, b: C, rng: np.random.Generator) -> C | None:
        """`a` with a range of blocks from `b`, within the budget; None if that is impossible."""
        ...


class Guided(Evolution[C]):
    """`Evolution` with other variations and a choice among them (ours, not the paper's).

    With a sensitivity table (`prior.rises`) the model of the score is the table's sum, corrected by what was measured
    (`tabled.py`). A child is the candidate of which that model expects most improvement on the best so far, among
    `ANSWERS` of the solver's under sampled corrections and `DRAWS` local moves: an elite, or with probability
    `crossover` one with a range of blocks from another, of which two to four sub-blocks trade quanta or, with
    probability `depth_mutation`, make good for one bit of the depth mask. Generation 0 has answers and moves of the
    anchor, half and half.

    Without one, a child is an elite, or a crossover of two, in which with probability `depth_mutation` one bit of the
    depth mask is flipped, and then a neighbour of that: as large as the budget allows, so that candidates differ in
    shape and not in size. The jitter of §3.5 changes all widths at once, by N(1, 0.3): from a good start nearly every
    child is worse. Of `DRAWS` such children the one that is measured is the one for which a regression expects the
    highest score (`surrogate.py`). Generation 0 also holds the architecture of the importance prior (A.1), where one is
    given and there is room: on some models it is far better than the uniform one, on others far worse, and it costs one
    evaluation to know.

    Both models are to be right near the elites: the regression is fitted to the better half of what was measured, the
    table to all of it (a bypass that cost dearly is to be known), the more loosely the worse.

    Args, Raises: as `Evolution`; `width_mutation` is not used.
    """

    space: LocalSpace[C]

    def __init__(
        self,
        space: LocalSpace[C],
        settings: SearchSettings,
        *,
        prior: Prior | None = None,
        starts: Sequence[C] = (),
        seeds: Sequence[C] = (),
    ) -> None:
        self._tabled: Tabled | None = None
        if prior is not None and prior.rises is not None:
            self._tabled = Tabled(cast(Any, space), prior.rises)
        else:
            seeds = [*seeds, *_by_importance(space, settings, prior, len(starts) + len(seeds))]
        super().__init__(space, settings, prior=prior, starts=starts, seeds=seeds)
        self._measured: list[tuple[float, C]] = []
        self._surrogate: Surrogate | None = None

    def know(self, scored: Sequence[tuple[float, C]], within: Callable[[C], bool]) -> None:
        """Take scores of candidates under any budget: the model learns from all, those within this one have children.

        Args:
            within: whether a candidate meets the budget.
        """
        self._seen |= {candidate.id for _, candidate in scored}
        mine = [(score, candidate) for score, candidate in scored if within(candidate)]
        super()._learn(mine)
        self._fit(scored)
        if self._tabled is not None and self._elites:  # of all sizes: it is to be right at this one
            self._tabled = self._tabled.near(cast(Any, self._measured), self._elites[0][0])

    def is_new(self, candidate: C) -> bool:
        """Whether a candidate is not known yet."""
        return candidate.id not in self._seen

    def propose(self, rng: np.random.Generator) -> C | None:
        """The most promising candidate that is not known yet; None if every draw is, or cannot meet the budget."""
        for _ in range(self.settings.redraws + 1):
            proposal = self._child(rng)
            if proposal is not None and proposal.feasible and self.is_new(proposal.candidate):
                return proposal.candidate
        return None

    def _learn(self, scored: list[tuple[float, C]]) -> None:
        """As `Evolution`; fits the model again."""
        super()._learn(scored)
        self._fit(scored)

    def _fit(self, scored: Sequence[tuple[float, C]]) -> None:
        self._measured += [(score, c) for score, c in scored if math.isfinite(score)]
        self._measured.sort(key=lambda pair: -pair[0])
        better = self._measured[: max(FEWEST, len(self._measured) // 2)]
        if better and self._tabled is not None:
            self._tabled.learn(cast(Any, self._measured))
        elif better:
            ratios = [self.space.ratios(c) for _, c in better]
            self._surrogate = fit(np.stack([features(r) for r in ratios]), np.array([score for score, _ in better]))

    def _child(self, rng: np.random.Generator) -> Proposal[C] | None:
        """The most promising of `DRAWS` children that were not measured yet, or the solver's answer."""
        if not self._elites:  # nothing has a score yet
            return super()._child(rng)
        if self._tabled is not None:
            tabled = self._tabled
            pool = itertools.chain(
                (self._answer(rng) for _ in range(ANSWERS)), (self._local(rng) for _ in range(DRAWS))
            )
            best = self._best_of(pool, cast(Any, tabled.improvement))
            if best is not None:
                tabled.proposed(cast(Any, best.candidate))
            return best
        assert self._surrogate is not None
        surrogate = self._surrogate
        drawn = (Evolution._child(self, rng) for _ in range(DRAWS))
        return self._best_of(drawn, lambda c: surrogate(features(self.space.ratios(c))))

    def _mutant(self, candidate: C, rng: np.random.Generator) -> Proposal[C]:
        if self._tabled is not None:
            moves = (self._traded(candidate, rng) for _ in range(DRAWS))
            expected = cast(Any, self._tabled.expected)
            found = (self._answer(rng) if rng.random() < 0.5 else None) or self._best_of(moves, expected)
            return Proposal(candidate, feasible=False) if found is None else found
        if rng.random() < self.settings.depth_mutation:
            candidate = self.space.mutate(candidate, rng, depth=1.0, width=0.0)
        near = self.space.neighbour(candidate, rng, sigma=self.settings.sigma)
        return Proposal(candidate, feasible=False) if near is None else Proposal(near)

    def _answer(self, rng: np.random.Generator) -> Proposal[C] | None:
        """The solver's answer under sampled corrections."""
        assert self._tabled is not None
        return feasible(cast(C | None, self._tabled.answer(rng)))

    def _local(self, rng: np.random.Generator) -> Proposal[C] | None:
        """A local move of an elite, or of an elite with a range of blocks from another."""
        a, b = rng.choice(len(self._elites), size=2, replace=len(self._elites) < 2).tolist()
        child = self._elites[a][1]
        if rng.random() < self.settings.crossover:
            child = self.space.exchange(child, self._elites[b][1], rng) or child
        return self._traded(child, rng)

    def _traded(self, candidate: C, rng: np.random.Generator) -> Proposal[C] | None:
        settings = self.settings
        return feasible(self.space.trade(candidate, rng, sigma=settings.sigma, depth=settings.depth_mutation))

    def _best_of(self, proposals: Iterable[Proposal[C] | None], worth: Callable[[C], float]) -> Proposal[C] | None:
        """Of the feasible candidates that were not seen yet, the one that is worth most; the first on a tie."""
        new = (p for p in proposals if p is not None and p.feasible and p.candidate.id not in self._seen)
        return max(new, key=lambda p: worth(p.candidate), default=None)


def _by_importance(space: Space[C], settings: SearchSettings, prior: Prior | None, taken: int) -> list[C]:
    """The architecture of the prior; none where it is the anchor already, or where there is no place for it."""
    if prior is None or settings.init == "importance" or taken >= settings.seats:
        return []
    profile = space.profile(prior.ratios, prior.drop_order)
    return [] if profile is None else [profile]
