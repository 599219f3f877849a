"""`tracenas plan`: what a search would cost and which budgets are feasible, before any work."""

from dataclasses import replace
from typing import Any

from tracenas.commands.plan.needs import needs
from tracenas.commands.plan.predicted import predicted_rises
from tracenas.commands.plan.result import SearchPlan
from tracenas.commands.plan.training import training
from tracenas.config import Effort, PlanConfig, check_used, parse_rank
from tracenas.models.checkpoints.source import open_source
from tracenas.pipeline.estimate import (
    compensation_memory,
    in_passes,
    measured_rates,
    prune_seconds,
    search_shape,
    search_time,
    trace_rank,
)
from tracenas.pipeline.minutes import spend
from tracenas.pipeline.target import resolve_proxy, resolve_target
from tracenas.proxies.combination import choose
from tracenas.scoring.workload import memory, per_stack
from tracenas.space import costs
from tracenas.space.architecture import Architecture
from tracenas.space.search_space import SearchSpace
from tracenas.strategies import SearchSettings

__all__ = ["SearchPlan", "plan"]


def plan(config: PlanConfig) -> SearchPlan:
    """Feasible budgets, exact sizes, and estimates: does it fit, and how long does every stage take.

    Only the timing imports torch; `no_timing` leaves it out.

    Raises:
        UserError: for a model, budget or settings that a search would refuse.
    """
    source = open_source(config.model)
    target = resolve_target(source, config, params=config.params, tolerance=config.tolerance)
    space, blocks, hidden = target.space, target.blocks, target.hidden
    proxy = resolve_proxy(config.proxy, source)
    check_used(config.model_copy(update={"proxy": proxy}))
    choice, size = choose(proxy), config.size
    arch = space.base if config.params is None else space.uniform()
    assert arch is not None  # `resolve_target` has refused such a budget
    rank = parse_rank(config.rank)
    starts = proxy != "phi" and not source.is_encoder_decoder
    length = config.seq_len or min(size.seq_len, source.positions)
    samples = config.samples or size.samples
    traced = trace_rank(choice.needs, rank)
    shape = in_passes(search_shape(source, samples, length, traced, device=config.device, dtype=config.dtype), target)
    rates, time, statistics = None, None, None
    if not config.no_timing:
        rates, shape = measured_rates(source, shape, device=config.device, dtype=config.dtype, threads=config.threads)
        shape = in_passes(shape, target)
        if config.minutes is not None:
            given = {"samples": config.samples, "statistics": None}
            spending = spend(config.minutes, target, arch, choice, rank, shape, rates, table=starts, **given)
            size, statistics = Effort(max(2, spending.evaluations), spending.samples, length), spending.statistics
            shape = in_passes(replace(shape, samples=spending.samples), target)
        time = search_time(target, arch, choice, rank, shape, rates, table=starts, statistics=statistics)
    sizes = config.sizes(size)
    settings = SearchSettings(sizes["population"], sizes["elites"], sizes["iterations"], evaluations=config.evaluations)
    planned = settings.planned if config.minutes is None else min(settings.planned, size.evaluations)
    figures = _figures(space, arch, source.family.head_weights(source.config), per_stack(blocks, shape).seq_len)
    trained = None if config.recover is None else training(config.recover, source.positions)
    stages: dict[str, float] = {}
    if time is not None and rates is not None:
        stages["search"] = 60 * config.minutes if config.minutes else time.once + planned * time.each
        if not source.is_encoder_decoder:
            stages["prune"] = prune_seconds(target, arch, shape, rates, statistics)
        if trained is not None:
            flops = (figures["flops_per_token"], figures["base_flops_per_token"])
            stages["recover"] = trained.seconds(*flops, rates.flops)
    base_params = space.parameters(space.base)
    used = replace(
        memory(blocks, space.base, arch, base_params, int(source.config["vocab_size"]), hidden, shape),
        compensation=compensation_memory(choice, blocks, shape),
    )
    return SearchPlan(
        config.model,
        source.family.model_type,
        base_params,
        space.parameters(space.smallest),
        None if config.params is None else space.window[1],
        None if config.params is None else space.window[0],
        figures,
        planned,
        shape,
        used,
        rates,
        None if time is None else time.each,
        stages,
        needs(
            used,
            figures["params"],
            shape.element,
            device=shape.device,
            gpu=None if rates is None else rates.device_memory,
            download=base_params * shape.element if source.commit else 0,
            trained=None if trained is None else figures["params"] // (trained.processes if trained.sharded else 1),
            adapters=trained is not None and trained.adapters,
        ),
        source.origin,
        None if config.sensitivity is None else predicted_rises(config.sensitivity, target),
    )


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
