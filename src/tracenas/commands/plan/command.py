"""`tracenas plan`: what a search would cost and which budgets are feasible, before any work."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tracenas.budgets import LATENCIES
from tracenas.commands.plan.models import PlannedModels, uniform_at
from tracenas.commands.plan.needs import Need, needs
from tracenas.commands.plan.predicted import predicted_rises
from tracenas.commands.plan.result import PlannedBudget, SearchPlan
from tracenas.commands.plan.stages import STAGES, StageTimes
from tracenas.commands.plan.training import Training, training
from tracenas.commands.search.settings import checkpoint_limits, front_end
from tracenas.config import Effort, PlanConfig, check_used, parse_rank
from tracenas.models.checkpoints.source import open_source
from tracenas.pipeline.budgets import Costs, resolve_budgets
from tracenas.pipeline.estimate import (
    compensation_memory,
    in_passes,
    measured_estimate,
    search_shape,
    trace_rank,
)
from tracenas.pipeline.minutes import spend
from tracenas.pipeline.recomputation import as_it_fits
from tracenas.pipeline.refit import STATISTICS_TOKENS
from tracenas.pipeline.target import PruningTarget, resolve_proxy
from tracenas.proxies.combination import Choice, choose
from tracenas.refits.costs import least_memory
from tracenas.resident import host_memory
from tracenas.scoring.device_peaks import peaks
from tracenas.scoring.workload import Memory, Shape, memory, per_stack
from tracenas.space import costs
from tracenas.space.architecture import Architecture
from tracenas.space.search_space import SearchSpace
from tracenas.strategies import SearchSettings

if TYPE_CHECKING:
    from tracenas.benchmark.machine import Rates

__all__ = ["SearchPlan", "plan"]


def plan(config: PlanConfig) -> SearchPlan:
    """Feasible budgets, exact sizes, and estimates: does it fit, and how long does every stage take.

    Only the timing imports torch; `no_timing` leaves it out.

    Raises:
        UserError: for a model, budget or settings that a search would refuse.
    """
    source = open_source(config.model)
    target = resolve_budgets(source, config)
    space, blocks = target.space, target.blocks
    proxy = resolve_proxy(config.proxy, source)
    check_used(config.model_copy(update={"proxy": proxy}))
    choice = choose(proxy)
    arch = space.uniform() if config.budgets else space.base
    assert arch is not None  # `resolve_budgets` has refused such a budget
    limits = checkpoint_limits(config, space)
    models = PlannedModels.of(config, space, arch, limits)
    sized = _sized(config, target, arch, choice, models)
    shape, rates, base = sized.shape, sized.rates, space.parameters(space.base)
    figures = _figures(space, arch, source.family.head_weights(source.config), per_stack(blocks, shape).seq_len)
    figures |= {} if config.latency is None else Costs.of(target, config).all(arch, LATENCIES)
    lower, limit = space.parameter_window or (None, None)
    trained = None if config.recover is None else training(config.recover, source.positions)
    vocabulary, refitted = int(source.config["vocab_size"]), choice.compensated
    used = replace(
        memory(blocks, space.base, arch, base, vocabulary, target.hidden, shape, refitted=refitted),
        compensation=compensation_memory(choice, blocks, shape),
    )
    return SearchPlan(
        config.model,
        source.family.model_type,
        base,
        space.parameters(replace(space, budget=None, further=()).smallest),
        limit,
        lower,
        _budgets(config, target, arch),
        figures,
        sized.planned,
        shape,
        used,
        rates,
        sized.each,
        {name: sized.seconds[name] for name in STAGES if name in sized.seconds},
        _needs(target, models, used, sized, trained, choice),
        source.origin,
        None if config.sensitivity is None else predicted_rises(config.sensitivity, target),
        sized.unknown,
        sized.untimed,
        {size: space.measures[0].plain(limit) for size, limit in limits.items()},
    )


def _needs(
    target: PruningTarget,
    models: PlannedModels,
    used: Memory,
    sized: "_Sized",
    trained: Training | None,
    choice: Choice,
) -> tuple[Need, ...]:
    """What the stages take of memory and disk."""
    parameters, element = target.space.parameters, sized.shape.element
    source, blocks = target.source, target.blocks
    counted = int(source.config["vocab_size"]), target.hidden, sized.shape
    measured = choice.compensated or "sensitivity" in choice.needs
    streamed = peaks(blocks, target.space, *counted, cuts=True, measured=measured)[1]
    largest = max(map(parameters, models.recovered or models.pruned))
    return needs(
        used,
        sum(map(parameters, models.written)) * element,
        device=sized.shape.device,
        gpu=None if sized.rates is None else sized.rates.device_memory,
        least=least_memory(target.blocks, STATISTICS_TOKENS),
        streamed=None if source.is_encoder_decoder else streamed,
        download=parameters(target.space.base) * element if target.source.commit else 0,
        trained=None if trained is None else largest // (trained.processes if trained.sharded else 1),
        adapters=trained is not None and trained.adapters,
        taught=trained is not None and trained.taught,
        kept=len(models.recovered) if trained is not None and trained.kept else 1,
    )


@dataclass(frozen=True)
class _Sized:
    """A search's calibration and candidates; seconds of one and of the stages, empty where nothing is timed.

    `unknown` names texts and tasks whose size is not known, so that no time of theirs is in the stages; `untimed`
    names stages.
    """

    shape: Shape
    planned: int
    rates: "Rates | None" = None
    each: float | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    untimed: tuple[str, ...] = ()


def _sized(
    config: PlanConfig, target: PruningTarget, arch: Architecture, choice: Choice, models: PlannedModels
) -> _Sized:
    """What the settings come to, with the rates of this machine unless they are not to be measured."""
    source, size, rank = target.source, config.size, parse_rank(config.rank)
    table = choice.text != "phi" and not source.is_encoder_decoder
    where = {"device": config.device, "dtype": config.dtype}
    length = config.seq_len or min(size.seq_len, source.positions)
    traced = trace_rank(choice.needs, rank)
    shape = in_passes(search_shape(source, config.samples or size.samples, length, traced, **where), target)
    if config.no_timing:
        return _Sized(as_it_fits(shape, target, _room(shape, None)), _planned(config, size))
    estimate, shape = measured_estimate(
        target, _typical(config, target, arch), choice, rank, shape, table=table, threads=config.threads, **where
    )
    shape = as_it_fits(shape, target, _room(shape, estimate.rates))
    statistics = None
    if config.minutes is not None:
        spending = spend(config.minutes, estimate, shape, samples=config.samples, statistics=None)
        size, statistics = spending.size(length), spending.statistics
        shape = in_passes(replace(shape, samples=spending.samples), target)
    time, planned = estimate.search(shape, statistics), _planned(config, size)
    search = 60 * config.minutes if config.minutes else time.once + planned * time.each
    stages = StageTimes(config, estimate, models, shape, time, statistics)
    seconds = {"search": search, **stages.seconds()}
    return _Sized(shape, planned, estimate.rates, time.each, seconds, stages.unknown, stages.untimed)


def _typical(config: PlanConfig, target: PruningTarget, arch: Architecture) -> Architecture:
    """What candidates are like: between the ends of a front."""
    if not config.front:
        return arch
    space = target.space
    return uniform_at(space, (front_end(config, space) + space.window[1]) // 2)


def _room(shape: Shape, rates: "Rates | None") -> int | None:
    """Bytes of memory where candidates run; None where that is not known."""
    if shape.device == "cpu":
        return host_memory()
    return None if rates is None else rates.device_memory


def _budgets(config: PlanConfig, target: PruningTarget, uniform: Architecture) -> dict[str, PlannedBudget]:
    """Every budget's limit, what is feasible of it, and what the uniform architecture costs."""
    if not config.budgets:
        return {}
    space, costs = target.space, Costs.of(target, config)
    planned = {}
    for name in config.budgets:
        plain, (low, base) = costs.measure(name).plain, space.feasible()[name]
        uses = costs.exactly(name, uniform)
        planned[name] = PlannedBudget(plain(space.limits[name]), (plain(low), plain(base)), plain(uses))
    return planned


def _planned(config: PlanConfig, size: Effort) -> int:
    """Candidates at most."""
    sizes = config.sizes(size)
    limit = config.evaluations if config.minutes is None else max(size.evaluations, sizes["population"])
    return SearchSettings(sizes["population"], sizes["elites"], sizes["iterations"], evaluations=limit).planned


def _figures(space: SearchSpace, arch: Architecture, head: int, context: int) -> dict[str, Any]:
    """Exact figures of an architecture; the KV-cache in bf16, as models are served."""
    flops = costs.flops_per_token(space.layers, head, arch, context)
    of_base = costs.flops_per_token(space.layers, head, space.base, context)
    return {
        "params": space.parameters(arch),
        "share": space.parameters(arch) / space.parameters(space.base),
        "flops_per_token": flops,
        "base_flops_per_token": of_base,
        "flops_ratio": flops / of_base,
        "kv_cache_bytes_per_token": 2 * costs.kv_cache_per_token(space.layers, arch),
        "base_kv_cache_bytes_per_token": 2 * costs.kv_cache_per_token(space.layers, space.base),
        "architecture": arch.to_json(),
    }
