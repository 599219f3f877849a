"""`tracenas plan`: what a search would cost and which budgets are feasible, before any work."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tracenas.commands.plan.predicted import UNCHECKED, predicted_rises
from tracenas.config import Effort, PlanConfig, check_used, parse_rank
from tracenas.formats import data_size, duration
from tracenas.models.checkpoints.source import open_source
from tracenas.pipeline.estimate import (
    compensation_memory,
    in_passes,
    measured_rates,
    search_shape,
    search_time,
    trace_rank,
)
from tracenas.pipeline.minutes import spend
from tracenas.pipeline.target import resolve_proxy, resolve_target
from tracenas.proxies.combination import choose
from tracenas.reporting.terminal import Outcome, Table, to_plain
from tracenas.scoring.workload import Memory, Shape, memory, per_stack
from tracenas.space import costs
from tracenas.space.architecture import Architecture
from tracenas.space.search_space import SearchSpace
from tracenas.strategies import SearchSettings

if TYPE_CHECKING:
    from tracenas.benchmark.machine import Rates

__all__ = ["SearchPlan", "plan"]


@dataclass(frozen=True)
class SearchPlan(Outcome):
    """What a search at these settings would take; counts are exact, memory and time are estimates.

    Args:
        model: as it was named.
        family: its model_type.
        base, smallest: parameters of the largest and smallest architecture of the space.
        limit, lower: the budget's window, None without a budget.
        uniform: the uniform architecture at the budget, in figures (the base without a budget).
        evaluations: at most; what has been seen before is not evaluated again.
        shape: calibration and micro-batch.
        memory: bytes at the peak.
        rates: what this machine managed, None if it was not tried.
        seconds_per_evaluation, seconds: of one candidate and of the search; None without rates.
        origin: where the weights come from, where that needs to be said (GGUF).
        predicted: what a sensitivity table says of the budget (`predicted_rises`); None without one.
    """

    model: str
    family: str
    base: int
    smallest: int
    limit: int | None
    lower: int | None
    uniform: dict[str, Any]
    evaluations: int
    shape: Shape
    memory: Memory
    rates: "Rates | None"
    seconds_per_evaluation: float | None
    seconds: float | None
    origin: str | None = None
    predicted: dict[str, Any] | None = None

    def to_json(self) -> Any:
        """For `--json`."""
        budget = None if self.limit is None else {"limit": self.limit, "lower": self.lower}
        time = None
        if self.rates is not None:
            time = {
                "estimate": True,
                "seconds_per_evaluation": self.seconds_per_evaluation,
                "seconds": self.seconds,
                "measured": vars(self.rates),
            }
        return to_plain(
            {
                "model": self.model,
                **({"weights": self.origin} if self.origin else {}),
                "family": self.family,
                "feasible": {
                    "smallest": self.smallest,
                    "base": self.base,
                    "smallest_percent": 100 * self.smallest / self.base,
                },
                "budget": budget,
                "uniform": self.uniform,
                **({"predicted": self.predicted} if self.predicted else {}),
                "evaluations": self.evaluations,
                "calibration": {**vars(self.shape), "tokens": self.shape.tokens},
                "memory_bytes": {"estimate": True, **vars(self.memory), "total": self.memory.total},
                "time": time,
            }
        )

    def tables(self) -> list[Table]:
        """Everything, and what the estimates are from."""
        notes = [self.origin] if self.origin is not None else []
        notes.append("memory: " + ", ".join(f"{name} {data_size(count)}" for name, count in vars(self.memory).items()))
        if self.predicted is not None:
            notes.append(UNCHECKED)
        if self.rates is not None:
            notes.append(
                "time: an estimate, from a second of measuring what this machine does when left alone "
                f"({self.rates.flops / 1e9:.1f} GFLOP/s in matrix products, {self.rates.bytes / 1e9:.1f} GB/s)"
            )
        return [Table(f"plan for {self.model} ({self.family})", ("", "value"), self._rows(), notes)]

    def _rows(self) -> list[tuple[str, str]]:
        u, s = self.uniform, self.shape
        share = 100 * self.smallest / self.base
        rows = [
            ("base, parameters", f"{self.base:,}"),
            ("feasible budgets", f"{self.smallest:,} to {self.base:,} ({share:.1f}% to 100%)"),
        ]
        if self.limit is not None:
            rows += [
                ("budget", f"{self.lower:,} to {self.limit:,} parameters"),
                ("uniform architecture", f"{u['params']:,} parameters ({100 * u['params'] / self.base:.2f}%)"),
            ]
        if self.predicted is not None:
            names = {"": "closed form", "_mlp": "MLPs alone", "_uniform": "equal ratios"}
            figures = {name: self.predicted.get(f"predicted_rise{suffix}") for suffix, name in names.items()}
            rises = ", ".join(f"{name} {rise:.4g}" for name, rise in figures.items() if rise is not None)
            rows.append(("predicted rise of the loss, nats per token", rises))
        of_base = f" ({100 * u['flops_ratio']:.1f}% of the base)" if self.limit is not None else ""
        rows += [
            ("forward FLOPs per token", f"{u['flops_per_token']:.4g}{of_base}"),
            (
                "KV-cache per token",
                f"{u['kv_cache_bytes_per_token']:,} bytes (bf16), base {u['base_kv_cache_bytes_per_token']:,}",
            ),
            ("calibration", f"{s.samples} × {s.seq_len} = {s.tokens:,} tokens, {s.micro_batch} per pass"),
            ("evaluations, at most", f"{self.evaluations:,}"),
            ("peak memory, estimate", data_size(self.memory.total)),
        ]
        if self.seconds is not None and self.seconds_per_evaluation is not None:
            each = f"{self.seconds_per_evaluation:.3g} s per evaluation"
            rows.append(("time, estimate", f"{duration(self.seconds)} ({each})"))
        return rows


def plan(config: PlanConfig) -> SearchPlan:
    """Feasible budgets, exact sizes, and an estimate of a search's memory and time.

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
    head = source.family.head_weights(source.config)
    base_params = space.parameters(space.base)
    return SearchPlan(
        config.model,
        source.family.model_type,
        base_params,
        space.parameters(space.smallest),
        None if config.params is None else space.window[1],
        None if config.params is None else space.window[0],
        _figures(space, arch, head, per_stack(blocks, shape).seq_len),
        planned,
        shape,
        replace(
            memory(blocks, space.base, arch, base_params, int(source.config["vocab_size"]), hidden, shape),
            compensation=compensation_memory(choice, blocks, shape),
        ),
        rates,
        None if time is None else time.each,
        None if time is None else 60 * config.minutes if config.minutes else time.once + planned * time.each,
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
