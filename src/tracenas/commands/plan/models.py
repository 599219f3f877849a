"""The checkpoints that a run would come to: uniform architectures stand for those that a search would find."""

from dataclasses import dataclass, replace

from tracenas.config import PlanConfig
from tracenas.space.architecture import Architecture
from tracenas.space.search_space import SearchSpace

__all__ = ["PlannedModels", "uniform_at"]

_RIVALS = 2
"""Of a run of one size, where they are recovered, too: uniform and a random one."""


@dataclass(frozen=True)
class PlannedModels:
    """Architectures of a run's checkpoints.

    Args:
        pruned: of the found one, or of every size of a front.
        recovered: of those and of rivals, where the run recovers.
    """

    pruned: tuple[Architecture, ...]
    recovered: tuple[Architecture, ...] = ()

    @classmethod
    def of(cls, config: PlanConfig, space: SearchSpace, found: Architecture, sizes: dict[str, int]) -> "PlannedModels":
        """What the settings come to.

        Args:
            found: stands for what a search of one size would find.
            sizes: limits of a front's first cost.
        """
        pruned = tuple(uniform_at(space, limit) for limit in sizes.values()) or (found,)
        if config.recover is None:
            return cls(pruned)
        return cls(pruned, (*pruned, *pruned[:1] * (_RIVALS if config.recover_rivals else 0)))

    @property
    def evaluated(self) -> tuple[Architecture, ...]:
        """What `eval` reads text and tasks with, beside the base."""
        return (*self.pruned, *self.recovered)

    @property
    def timed(self) -> tuple[Architecture, ...]:
        """What `bench` times, beside the base."""
        return self.recovered or self.pruned

    @property
    def written(self) -> tuple[Architecture, ...]:
        """What is on the disk in the end: rivals are pruned, too, before they are recovered."""
        return (*(self.recovered or self.pruned), *self.recovered)


def uniform_at(space: SearchSpace, limit: int) -> Architecture:
    """Equal ratios within a limit of the first budget, however far below: a size that the search accepts has them."""
    assert space.budget is not None
    found = replace(space, budget=replace(space.budget, limit=limit, tolerance=1.0)).uniform()
    assert found is not None  # sizes below a front's lower end, which equal ratios meet, have been refused
    return found
