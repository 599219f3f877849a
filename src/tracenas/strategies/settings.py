"""Sizes and rates of a search (TraceNAS Table 5), as plain data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tracenas.errors import UserError
from tracenas.registry import did_you_mean

__all__ = ["INITS", "Prior", "SearchSettings"]

INITS = ("importance", "uniform", "random", "given")


@dataclass(frozen=True)
class Prior:
    """Layer importance I_l as a width profile (TraceNAS A.1).

    Args:
        ratios: per layer and sub-block, I_l over its mean within attention and within MLP; any scale.
        drop_order: layers in the order in which they go where the minimum widths exceed the budget
            (least important first); None for an evenly spread order.
        rises: what a sensitivity table predicts, per (block, sub-block): the rise of the loss at 0 units and at each
            feasible width, in nats per token; None where there is no table.
    """

    ratios: Sequence[Sequence[float]]
    drop_order: Sequence[int] | None = None
    rises: Mapping[tuple[int, str], Sequence[float]] | None = None


@dataclass(frozen=True)
class SearchSettings:
    """Table 5, with decision 8 where the paper is silent.

    Args:
        population: candidates in generation 0, and in every population with the elites among them.
        elites: candidates that are carried over and are the parents of the next generation.
        iterations: populations in all; generation 0 is the first.
        crossover: probability that a child has two parents.
        depth_mutation, width_mutation: probabilities, per child, of a depth flip and of a width jitter.
        sigma: standard deviation of the width jitter's factor N(1, σ).
        init: `importance`, `uniform` or `random` (TraceNAS A.1, Table 4), or `given`: the first start or seed.
        redraws: how often a child that was seen before is drawn again.
        seed: of the run; a generation's randomness derives from (seed, generation).
        evaluations: candidates at most, where that is fewer than the populations have.
        patience: generations in a row without a gain beyond the noise after which the search ends; None or 0: never.
    """

    population: int = 30
    elites: int = 10
    iterations: int = 50
    crossover: float = 0.7
    depth_mutation: float = 0.2
    width_mutation: float = 0.2
    sigma: float = 0.3
    init: str = "importance"
    redraws: int = 20
    seed: int = 0
    evaluations: int | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        if self.population < 2:
            raise UserError(f"population {self.population}: accepted: 2 or more")
        if not 1 <= self.elites < self.population:
            raise UserError(f"elites {self.elites}: accepted: 1 to {self.population - 1} (population - 1)")
        if self.iterations < 1:
            raise UserError(f"iterations {self.iterations}: accepted: 1 or more")
        if self.evaluations is not None and self.evaluations < self.population:
            raise UserError(
                f"evaluations {self.evaluations}: the initial population has {self.population}; accepted: no fewer"
            )
        for name in ("crossover", "depth_mutation", "width_mutation"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"{name} {getattr(self, name)}: a probability; accepted: 0 to 1")
        if not 0.0 <= self.sigma < float("inf"):
            raise UserError(f"sigma {self.sigma}: accepted: 0 or more")
        if self.redraws < 0:
            raise UserError(f"redraws {self.redraws}: accepted: 0 or more")
        if self.patience is not None and self.patience < 0:
            raise UserError(f"patience {self.patience}: accepted: 0 or more")
        if self.seed < 0:
            raise UserError(f"seed {self.seed}: accepted: 0 or more")
        if self.init not in INITS:
            raise UserError(f"unknown init '{self.init}': {did_you_mean(self.init, list(INITS))}")

    @property
    def children(self) -> int:
        """New candidates per generation after the first."""
        return self.population - self.elites

    @property
    def seats(self) -> int:
        """Places of generation 0 that starts and seeds can take: all but the anchor's, which with `given` is theirs."""
        return self.population - (self.init not in ("random", "given"))

    @property
    def planned(self) -> int:
        """Evaluations at most: 30 + 49 · 20 = 1,010 at the paper's settings (decision 8)."""
        whole = self.population + (self.iterations - 1) * self.children
        return whole if self.evaluations is None else min(whole, self.evaluations)
