"""Evolution by small moves within the budget, of which a regression on the scores so far picks those to measure."""

import math
from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np

from tracenas.strategies.evolution import Evolution
from tracenas.strategies.protocol import Candidate, Proposal, Space
from tracenas.strategies.settings import Prior, SearchSettings
from tracenas.strategies.surrogate import Surrogate, features, fit

__all__ = ["Guided", "LocalSpace"]

C = TypeVar("C", bound=Candidate)
DRAWS = 64
"""Children drawn for one that is measured."""
FEWEST = 6
"""Candidates that the regression is fitted to at least, where so many have a score."""


class LocalSpace(Space[C], Protocol[C]):
    """A space whose candidates have neighbours."""

    def neighbour(self, arch: C, rng: np.random.Generator, *, sigma: float = ...) -> C | None:
        """A candidate of the budget near `arch`, as large as the budget allows; None if that is impossible."""
        ...


class Guided(Evolution[C]):
    """`Evolution` with other variations and a choice among them (ours, not the paper's).

    A child is an elite, or a crossover of two, in which with probability `depth_mutation` one bit of the depth mask is
    flipped, and then a neighbour of that: as large as the budget allows, so that candidates differ in shape and not in
    size. The jitter of §3.5 changes all widths at once, by N(1, 0.3): from a good start nearly every child is worse.
    Of `DRAWS` such children the one that is measured is the one for which a regression expects the highest score
    (`surrogate.py`), fitted to the better half of what was measured: it is to be right near the elites.

    Generation 0 also holds the architecture of the importance prior (A.1), where one is given and there is room: on
    some models it is far better than the uniform one, on others far worse, and it costs one evaluation to know.

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
        by_importance = _by_importance(space, settings, prior, len(starts) + len(seeds))
        super().__init__(space, settings, prior=prior, starts=starts, seeds=[*seeds, *by_importance])
        self._measured: list[tuple[float, np.ndarray]] = []
        self._surrogate: Surrogate | None = None

    def _learn(self, scored: list[tuple[float, C]]) -> None:
        """As `Evolution`; fits the regression again."""
        super()._learn(scored)
        self._measured += [(score, features(self.space.ratios(c))) for score, c in scored if math.isfinite(score)]
        self._measured.sort(key=lambda pair: -pair[0])
        better = self._measured[: max(FEWEST, len(self._measured) // 2)]
        if better:
            self._surrogate = fit(np.stack([x for _, x in better]), np.array([score for score, _ in better]))

    def _child(self, rng: np.random.Generator) -> Proposal[C] | None:
        """The most promising of `DRAWS` children that were not measured yet."""
        if self._surrogate is None:  # nothing has a score yet
            return super()._child(rng)
        best: tuple[float, Proposal[C]] | None = None
        for _ in range(DRAWS):
            proposal = super()._child(rng)
            if proposal is None or not proposal.feasible or proposal.candidate.id in self._seen:
                continue
            expected = self._surrogate(features(self.space.ratios(proposal.candidate)))
            if best is None or expected > best[0]:
                best = expected, proposal
        return None if best is None else best[1]

    def _mutant(self, candidate: C, rng: np.random.Generator) -> Proposal[C]:
        if rng.random() < self.settings.depth_mutation:
            candidate = self.space.mutate(candidate, rng, depth=1.0, width=0.0)
        near = self.space.neighbour(candidate, rng, sigma=self.settings.sigma)
        return Proposal(candidate, feasible=False) if near is None else Proposal(near)


def _by_importance(space: Space[C], settings: SearchSettings, prior: Prior | None, taken: int) -> list[C]:
    """The architecture of the prior; none where it is the anchor already, or where there is no place for it."""
    if prior is None or settings.init == "importance" or taken >= settings.seats:
        return []
    profile = space.profile(prior.ratios, prior.drop_order)
    return [] if profile is None else [profile]
