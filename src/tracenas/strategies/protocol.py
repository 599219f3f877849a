"""What a search needs of a space, and what a strategy and the search loop hand each other."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

__all__ = ["Batch", "Candidate", "Proposal", "Space"]


class Candidate(Hashable, Protocol):
    """A point of a space: frozen, hashable, with a stable short name and a JSON form."""

    @property
    def id(self) -> str:
        """Equal for equal candidates, in every process."""
        ...

    def to_json(self) -> dict[str, Any]:
        """The JSON object that the journal records under `arch`."""
        ...


C = TypeVar("C", bound=Candidate)


class Space(Protocol[C]):
    """The operations that evolution uses; `tracenas.space.SearchSpace` is the structured one."""

    def uniform(self) -> C | None:
        """The candidate that treats every layer alike, filled up to the budget; None if there is none."""
        ...

    def profile(self, ratios: Sequence[Sequence[float]], drop_order: Sequence[int] | None = None) -> C | None:
        """The candidate in proportion to `ratios` per layer and sub-block, as large as the budget allows."""
        ...

    def sample(self, rng: np.random.Generator) -> C | None:
        """A random candidate of the budget; None if this draw cannot be repaired into it."""
        ...

    def crossover(self, a: C, b: C, rng: np.random.Generator) -> C:
        """A child of two parents, not repaired."""
        ...

    def mutate(
        self, arch: C, rng: np.random.Generator, *, depth: float = ..., width: float = ..., sigma: float = ...
    ) -> C:
        """A variation, not repaired: depth and width change with these probabilities."""
        ...

    def repair(self, arch: C, rng: np.random.Generator) -> C | None:
        """The candidate moved into the budget's window; itself if it is in it; None if that is impossible."""
        ...

    def parameters(self, arch: C) -> int:
        """All parameters of the candidate's model."""
        ...

    def ratios(self, arch: C) -> Sequence[Sequence[float]]:
        """Retention ratios κ per layer and sub-block in [0, 1]; 0 = bypassed."""
        ...


@dataclass(frozen=True)
class Proposal(Generic[C]):
    """A candidate to be scored; an infeasible one is recorded with -inf instead (Algorithm 1)."""

    candidate: C
    feasible: bool = True


@dataclass(frozen=True)
class Batch(Generic[C]):
    """One generation's new candidates, none of which was proposed before.

    Args:
        proposals: they may be drawn as they are asked for; `len` has all of them drawn.
        duplicated: says how many duplicates there were, once all are drawn.
    """

    generation: int
    proposals: Sequence[Proposal[C]]
    duplicated: Callable[[], int] = lambda: 0

    @property
    def duplicates(self) -> int:
        """Places that stayed empty because no redraw gave a candidate that is new."""
        _ = len(self.proposals)
        return self.duplicated()
