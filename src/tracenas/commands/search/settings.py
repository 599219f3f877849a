"""What a search's settings come to, before torch is imported."""

from typing import TypeVar

from tracenas.config import SearchConfig
from tracenas.models.checkpoints.source import ModelSource
from tracenas.pipeline.target import resolve_proxy
from tracenas.strategies import SearchSettings

__all__ = ["resolve_search", "strategy_settings"]

C = TypeVar("C", bound=SearchConfig)


def resolve_search(config: C, source: ModelSource) -> C:
    """The settings with what `auto` stands for: Φ is searched as published, everything else by small guided moves."""
    proxy = resolve_proxy(config.proxy, source)
    strategy, init = config.strategy, config.init
    if strategy == "auto":
        strategy = "evolution" if proxy == "phi" else "guided"
    if init == "auto":
        init = "importance" if strategy == "evolution" else "uniform"
    return config.model_copy(update={"proxy": proxy, "strategy": strategy, "init": init})


def strategy_settings(config: SearchConfig) -> SearchSettings:
    """What the strategy is told.

    Raises:
        UserError: for sizes that do not go together.
    """
    return SearchSettings(
        population=config.population,
        elites=config.elites,
        iterations=config.iterations,
        crossover=config.crossover,
        depth_mutation=config.mutation_depth,
        width_mutation=config.mutation_width,
        sigma=config.sigma,
        init="given" if config.init == "nirvana" else config.init,
        seed=config.seed,
    )
