"""What a search's settings come to, before torch is imported."""

import logging
from typing import Any, TypeVar

from tracenas.budgets import BUDGETS
from tracenas.budgets.sizes import parse_limit
from tracenas.config import Effort, SearchConfig, parse_rank
from tracenas.config.front import FrontConfig, SizesConfig
from tracenas.config.usage import needs
from tracenas.data.sources import is_tokens
from tracenas.errors import UserError
from tracenas.models.checkpoints.source import ModelSource
from tracenas.pipeline.estimate import measured_estimate, search_shape, trace_rank
from tracenas.pipeline.minutes import spend
from tracenas.pipeline.target import PruningTarget, resolve_proxy
from tracenas.proxies.combination import choose
from tracenas.saliency import OF_TABLES, PLAIN
from tracenas.saliency.starts import SOLVED
from tracenas.space.search_space import SearchSpace
from tracenas.strategies import SearchSettings

__all__ = [
    "check_starts",
    "checkpoint_limits",
    "front_end",
    "resolve_search",
    "sized",
    "strategy_settings",
    "within_minutes",
]

C = TypeVar("C", bound=SearchConfig)
_log = logging.getLogger("tracenas")
_PATIENCE = 3
"""Generations without a gain after which a guided search with starts ends."""
_BUSY = 1.3
"""From this load on it is said that a search takes less text because of it."""
_SPARE = 4
"""How many times as many generations as expected a search with a time limit has: candidates may be faster."""


def resolve_search(config: C, source: ModelSource) -> C:
    """The settings with what `auto` stands for: Φ is searched as published, everything else by small guided moves.

    `start` stays, so that a default one may be left out where it cannot be had; so does `saliency` where it is the
    order of that start's table. A guided search that has starts ends once it finds nothing better; what is as published
    goes on.

    Raises:
        UserError: for an unknown proxy or start.
    """
    proxy = resolve_proxy(config.proxy, source)
    strategy, init = config.strategy, config.init
    if strategy == "auto":
        strategy = "evolution" if proxy == "phi" else "guided"
    update: dict[str, Any] = {"proxy": proxy, "strategy": strategy}
    if config.front:
        update |= _of_a_front(config)
        strategy = update["strategy"]
    if init == "auto":
        guided = strategy == "guided" and config.model_copy(update={**update, "init": "start"}).starts
        init = "importance" if strategy == "evolution" else "start" if guided else "uniform"
    if config.saliency == "auto" and not (SOLVED & set(config.starts) and needs(proxy, "compensated")):
        update["saliency"] = PLAIN
    elif config.saliency == "auto" and config.start != "auto":  # whose table is asked for
        update["saliency"] = OF_TABLES
    if config.patience is None:
        goes_on = strategy != "guided" or not config.starts or config.front
        update["patience"] = 0 if goes_on else _PATIENCE
    return config.model_copy(update={**update, "init": init})


def _of_a_front(config: SearchConfig) -> dict[str, Any]:
    """What is not a front's to choose.

    Raises:
        UserError: for settings that go without one.
    """
    if config.strategy not in ("auto", "guided"):
        raise UserError(f"front goes with strategy guided, not {config.strategy}")
    return {"strategy": "guided"}


def front_end(config: FrontConfig, space: SearchSpace) -> int:
    """The lower end of a front, in what its first cost counts.

    Raises:
        UserError: if it is none, nothing is so small, or it is not below the upper end.
    """
    name = config.front_costs[0]
    smallest = parse_limit(name, BUDGETS.get(name), config.smallest, space.cost(space.base))
    if smallest >= space.window[0]:
        number = space.measures[0].number
        end = f"{number(smallest)} is not below the front's upper end, {number(space.window[1])}"
        raise UserError(f"smallest '{config.smallest}': {end}")
    space.at(smallest).check_budget()
    return smallest


def checkpoint_limits(config: SizesConfig, space: SearchSpace) -> dict[str, int]:
    """Every size that a front's checkpoints are written at, in what its first cost counts.

    Raises:
        UserError: as `front_end`, for sizes that are none, or lie below the front, and for one in two forms.
    """
    if not config.front:
        return {}
    name, lower, number = config.front_costs[0], front_end(config, space), space.measures[0].number
    limits: dict[str, int] = {}
    for size in config.sizes_of_checkpoints:
        limit = parse_limit(name, BUDGETS.get(name), size, space.cost(space.base))
        if limit < lower:
            below = f"{number(limit)} {name} are below the front's lower end, {number(lower)}"
            raise UserError(f"checkpoints {size}: {below}")
        if same := [other for other, known in limits.items() if known == limit]:
            raise UserError(f"checkpoints {size}: {number(limit)} {name}, as {same[0]}; name every size once")
        limits[size] = limit
    return limits


def sized(config: C, size: Effort | None = None) -> C:
    """The settings with sizes of generations, and of the calibration where it is cut from text.

    Args:
        size: that they follow from; None: that of the settings.
    """
    size = size or config.size
    update: dict[str, Any] = config.sizes(size)
    if config.samples is None and not is_tokens(config.data):
        update["samples"] = size.samples
    return config.model_copy(update=update)


def within_minutes(config: C, target: PruningTarget) -> C:
    """The settings, `sized` for the minutes that the search may take, by what this machine manages.

    It ends by the clock; its generations are more than it will come to.

    Raises:
        UserError: if no candidate could be measured in that time.
    """
    assert config.minutes is not None
    choice, rank = choose(config.proxy), parse_rank(config.rank)
    length = config.seq_len or min(config.longest, target.source.positions)
    where = {"device": config.device, "dtype": config.dtype}
    shape = search_shape(target.source, config.samples or 1, length, trace_rank(choice.needs, rank), **where)
    arch = target.space.uniform()
    assert arch is not None  # `resolve_budgets` has refused such a budget
    table = bool(SOLVED & set(config.starts))
    estimate, shape = measured_estimate(target, arch, choice, rank, shape, table=table, threads=config.threads, **where)
    if (load := estimate.rates.load) > _BUSY:
        _log.info("other work on this machine: everything takes about %.1f times as long, so less text is taken", load)
    given = {"samples": config.samples, "statistics": config.compensate_samples}
    spending = spend(config.minutes, estimate, shape, **given)
    settings = sized(config, spending.size(length))
    assert settings.iterations is not None
    update: dict[str, Any] = {"iterations": config.iterations or _SPARE * settings.iterations}
    if choice.compensated and config.compensate_samples is None:
        update["compensate_samples"] = spending.statistics
    return settings.model_copy(update=update)


def strategy_settings(config: SearchConfig) -> SearchSettings:
    """What the strategy is told by settings that are `sized`.

    Raises:
        UserError: for sizes that do not go together.
    """
    assert config.population is not None and config.elites is not None and config.iterations is not None
    return SearchSettings(
        population=config.population,
        elites=config.elites,
        iterations=config.iterations,
        evaluations=config.evaluations,
        crossover=config.crossover,
        depth_mutation=config.mutation_depth,
        width_mutation=config.mutation_width,
        sigma=config.sigma,
        patience=config.patience,
        init="given" if config.init in ("nirvana", "start") else config.init,
        seed=config.seed,
    )


def check_starts(config: SearchConfig) -> None:
    """Refuse starts that the initial population has no places for, and an anchor that is a start where there is none.

    Raises:
        UserError: as said, and for unknown starts.
    """
    assert config.population is not None
    count, places = len(config.starts), config.population - (config.init not in ("start", "random"))
    if config.init == "start" and not count:
        raise UserError("init start needs a start, and there is none; accepted: importance, uniform, random, nirvana")
    if config.strategy != "uniform" and count > places:
        raise UserError(f"start: {count} architectures, and the initial population has room for {places} beside init")
