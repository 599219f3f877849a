"""All sizes in one search: the front of scores against one cost or several (ours).

Candidates are made for targets: limits of the costs, spread between the lower end and the budgets (`targets.py`). What
is known of one serves all others: there is one journal and one model of the score (the sensitivity table's sum as the
scores so far correct it; without a table a regression on the widths).

Generation 0 has the table's own answer at every target (uniform ones without a table) and the starts. Later every child
is made for a target, of one cost a limit between those, too, drawn in proportion to the hypervolume that a new
candidate there is expected to gain: where the front is thin. Of the solver's answers under sampled corrections and of
local moves of the best candidates there and of the elites nearby it is the one of most expected gain,

    Σ over the elites m of V_m · E[max(0, score - score of m)],

V_m the volume of limits that the candidate meets and among which m is the best of the elites (`dominance.py`). Elites
are chosen front by front, and by what they add to the hypervolume; of one cost they are the whole front at least. Costs
are known exactly, only the score is a guess.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np

from tracenas.space.architecture import Architecture
from tracenas.space.search_space import SearchSpace
from tracenas.strategies.dominance import Point, Terrain, elites, non_dominated
from tracenas.strategies.draw import Draws
from tracenas.strategies.protocol import Proposal
from tracenas.strategies.settings import Prior, SearchSettings
from tracenas.strategies.strategy import Strategy, feasible
from tracenas.strategies.surrogate import Surrogate, features, fit
from tracenas.strategies.tabled import Tabled
from tracenas.strategies.targets import targets

__all__ = ["TARGETS", "Front"]

TARGETS = 20
"""Limits of a front of one cost."""
TOGETHER = 32
"""Limits of a front of several costs."""
FINER = 3
"""Times as many limits of one cost that later children are made for."""
ANSWERS, MOVES = 6, 32
"""Solver's answers and local moves among which a child is chosen."""
_LEAST = 0.1
"""What a target's chance is of the largest one's at least."""
_NEAR = 2
"""Elites near a target that moves start from, beside the best that meets it."""

Scored = tuple[float, Architecture]


class Front(Strategy[Architecture]):
    """See the module.

    Args:
        space: with the upper ends of the front among its budgets; others hold at every size.
        smallest: the lower end of the first cost.
        costs: the front's, names of budgets; None: the first budget's.
    """

    space: SearchSpace

    def __init__(
        self,
        space: SearchSpace,
        settings: SearchSettings,
        *,
        smallest: int,
        costs: Sequence[str] | None = None,
        prior: Prior | None = None,
        starts: Sequence[Architecture] = (),
    ) -> None:
        super().__init__(space, settings, prior=prior, starts=starts[: settings.population])
        self.costs, self._smallest = tuple(costs or (space.measures[0].name,)), smallest
        self._ends = [float(space.limits[name]) for name in self.costs]
        self._tabled = None if prior is None or prior.rises is None else Tabled(space, prior.rises)
        self._local: dict[int, Tabled] = {}
        self._surrogate: Surrogate | None = None
        self._measured: list[Scored] = []
        self._elites: list[Scored] = []
        self._worst: Scored | None = None
        self._points: dict[str, tuple[float, ...]] = {}

    @cached_property
    def targets(self) -> list[SearchSpace]:
        """What candidates are made for."""
        count = min(TARGETS if len(self.costs) == 1 else TOGETHER, self.settings.population)
        return targets(self.space, self.costs, self._smallest, count, self._plain)

    @cached_property
    def _later(self) -> list[SearchSpace]:
        """What children of later generations are made for: of one cost also sizes between the targets."""
        if len(self.costs) > 1:
            return self.targets
        return targets(self.space, self.costs, self._smallest, FINER * TARGETS, self._plain)

    def spent(self, arch: Architecture) -> tuple[float, ...]:
        """What an architecture has of the front's costs."""
        if arch.id not in self._points:
            spent = self.space.costs(arch)
            self._points[arch.id] = tuple(float(spent[name]) for name in self.costs)
        return self._points[arch.id]

    def _initial(self, draws: Draws[Architecture], rng: np.random.Generator) -> None:
        for space in self.targets:
            draws.offer(feasible(self._plain(space)))
        for start in self._starts:
            if len(draws) < self.settings.population:
                draws.offer(Proposal(start))
        draws.fill(self.settings.population, lambda: self._drawn(rng))

    def _plain(self, space: SearchSpace, model: Tabled | None = None) -> Architecture | None:
        """What a model, or the table, makes of a target; equal ratios without one."""
        model = model or self._tabled
        answer = None if model is None else model.answer(None, space)
        return answer if answer is not None and not space.place(space.counts(answer)) else space.uniform()

    def _drawn(self, rng: np.random.Generator) -> Proposal[Architecture] | None:
        """A move of what is plain at some target, for places that are left in generation 0."""
        space = self.targets[int(rng.integers(len(self.targets)))]
        plain = self._plain(space)
        return None if plain is None else feasible(space.neighbour(plain, rng, sigma=self.settings.sigma))

    def _following(self, draws: Draws[Architecture], rng: np.random.Generator) -> None:
        chances = self._chances(rng)
        draws.fill(self.settings.children, lambda: self._child(int(rng.choice(len(chances), p=chances)), rng))

    def _chances(self, rng: np.random.Generator) -> np.ndarray:
        """Of every target, in proportion to what is expected to be gained there."""
        gains = np.zeros(len(self._later))
        for place, space in enumerate(self._later):
            model = self._model(place)
            for arch in (self._plain(space, model), self._answer(space, model, rng)):
                if arch is not None and arch.id not in self._seen:
                    gains[place] = max(gains[place], self._gain(arch, model))
        gains = np.maximum(gains, _LEAST * (gains.max(initial=0.0) or 1.0))
        chances: np.ndarray = gains / gains.sum()
        return chances

    def _model(self, place: int) -> Tabled | None:
        """What is thought of candidates for a target: by what scored as the best there, as a unit's worth varies."""
        if self._tabled is None or not self._measured:
            return self._tabled
        if place not in self._local:
            space = self._later[place]
            best = next((score for score, arch in self._measured if space.fits(arch)), self._measured[-1][0])
            self._local[place] = self._tabled.near(self._measured, best)
        return self._local[place]

    def _child(self, place: int, rng: np.random.Generator) -> Proposal[Architecture] | None:
        """The most promising candidate for a target."""
        if not self._measured:
            return self._drawn(rng)
        model = self._model(place)
        pool = [arch for arch in self._pool(self._later[place], model, rng) if arch.id not in self._seen]
        if not pool:
            return None
        chosen = max(pool, key=lambda arch: self._gain(arch, model))
        for other in self._local.values():
            other.proposed(chosen)
        return Proposal(chosen)

    def _pool(self, space: SearchSpace, model: Tabled | None, rng: np.random.Generator) -> Iterator[Architecture]:
        """Answers and moves within limits."""
        parents = self._parents(space)
        for _ in range(ANSWERS):
            answer = self._answer(space, model, rng)
            if answer is not None and not space.place(space.counts(answer)):
                yield answer
        for _ in range(MOVES):
            parent = space.repair(parents[int(rng.integers(len(parents)))], rng)
            moved = None if parent is None else self._move(space, parent, rng)
            if moved is not None:
                yield moved
            elif parent is not None and self.settings.sigma:
                yield parent

    def _parents(self, space: SearchSpace) -> list[Architecture]:
        """The best that meets the limits, and the elites whose costs are nearest to them."""
        best = next(([arch] for _, arch in self._measured if space.fits(arch)), [])
        wanted = np.array([space.limits[name] for name in self.costs])
        away = [float((np.abs(np.array(self.spent(arch)) - wanted) / self._ends).sum()) for _, arch in self._elites]
        near = [self._elites[place][1] for place in np.argsort(away, kind="stable")[:_NEAR].tolist()]
        return best + [arch for arch in near if arch not in best]

    def _move(self, space: SearchSpace, parent: Architecture, rng: np.random.Generator) -> Architecture | None:
        sigma, depth = self.settings.sigma, self.settings.depth_mutation
        if self._tabled is not None or rng.random() < 0.5:
            return space.trade(parent, rng, sigma=sigma, depth=depth)
        return space.neighbour(parent, rng, sigma=sigma)

    def _answer(self, space: SearchSpace, model: Tabled | None, rng: np.random.Generator) -> Architecture | None:
        return None if model is None else model.answer(rng, space)

    def _learn(self, scored: list[Scored]) -> None:
        self._measured += [(score, arch) for score, arch in scored if math.isfinite(score)]
        self._measured.sort(key=lambda pair: -pair[0])
        if not self._measured:
            return
        self._worst = self._worst or self._measured[-1]
        if self._tabled is not None:
            self._tabled.learn(self._measured)
            self._local.clear()
        else:
            ratios = np.stack([features(self.space.ratios(arch)) for _, arch in self._measured])
            self._surrogate = fit(ratios, np.array([score for score, _ in self._measured]))
        points: dict[int, Point] = {n: (*self.spent(arch), score) for n, (score, arch) in enumerate(self._measured)}
        chosen = elites(points, self._count(points), self._ends, self._worst[0])
        self._elites = [self._measured[place] for place in chosen]
        self.__dict__.pop("_terrain", None)

    def _count(self, points: Mapping[int, Point]) -> int:
        """Of elites: of one cost the whole front at least, as sizes without one would look unknown."""
        asked = len(self.costs) * self.settings.elites
        return asked if len(self.costs) > 1 else max(asked, len(non_dominated(points)))

    @cached_property
    def _terrain(self) -> Terrain:
        """Who of the elites is best under which limits."""
        assert self._worst is not None
        points = [(*self.spent(arch), score) for score, arch in self._elites]
        return Terrain.of(points, self._ends, self._worst[0])

    def _gain(self, arch: Architecture, model: Tabled | None) -> float:
        """The hypervolume that a candidate is expected to add."""
        assert self._worst is not None
        first, *others = self.spent(arch)
        shares = self._terrain.shares([max(first, self._smallest), *others])
        rivals = [*(other for _, other in self._elites), self._worst[1]]
        return sum(
            float(share) * self._better(arch, rival, model)
            for share, rival in zip(shares, rivals, strict=True)
            if share > 0
        )

    def _better(self, arch: Architecture, other: Architecture, model: Tabled | None) -> float:
        """What a candidate's score is expected to gain on another's."""
        if model is not None:
            return model.gain(arch, other)
        assert self._surrogate is not None
        one, rival = (self._surrogate(features(self.space.ratios(a))) for a in (arch, other))
        return max(one - rival, 0.0)
