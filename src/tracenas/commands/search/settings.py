"""What a search's settings come to, before torch is imported."""

from typing import TypeVar

from tracenas.config import SearchConfig
from tracenas.errors import UserError
from tracenas.models.checkpoints.source import ModelSource
from tracenas.pipeline.target import resolve_proxy
from tracenas.strategies import SearchSettings

__all__ = ["check_starts", "resolve_search", "strategy_settings"]

C = TypeVar("C", bound=SearchConfig)


def resolve_search(config: C, source: ModelSource) -> C:
    """The settings with what `auto` stands for: Φ is searched as published, everything else by small guided moves.

    `start` stays, so that a default one may be left out where it cannot be had.

    Raises:
        UserError: for an unknown proxy or start.
    """
    proxy = resolve_proxy(config.proxy, source)
    strategy, init = config.strategy, config.init
    if strategy == "auto":
        strategy = "evolution" if proxy == "phi" else "guided"
    update = {"proxy": proxy, "strategy": strategy}
    if init == "auto":
        guided = strategy == "guided" and config.model_copy(update={**update, "init": "start"}).starts
        init = "importance" if strategy == "evolution" else "start" if guided else "uniform"
    return config.model_copy(update={**update, "init": init})


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
        init="given" if config.init in ("nirvana", "start") else config.init,
        seed=config.seed,
    )


def check_starts(config: SearchConfig) -> None:
    """Refuse starts that the initial population has no places for, and an anchor that is a start where there is none.

    Raises:
        UserError: as said, and for unknown starts.
    """
    count, places = len(config.starts), config.population - (config.init not in ("start", "random"))
    if config.init == "start" and not count:
        raise UserError("init start needs a start, and there is none; accepted: importance, uniform, random, nirvana")
    if config.strategy != "uniform" and count > places:
        raise UserError(f"start: {count} architectures, and the initial population has room for {places} beside init")
