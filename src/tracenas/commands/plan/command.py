"""`tracenas plan`: what a search would cost and which budgets are feasible, before any work."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tracenas.commands.plan.costs import (
    compensation_memory,
    compensation_seconds,
    pool_size,
    seconds_per_candidate,
    trace_rank,
)
from tracenas.commands.plan.predicted import UNCHECKED, predicted_rises
from tracenas.config import PlanConfig, check_used, parse_rank
from tracenas.errors import UserError
from tracenas.families import Block
from tracenas.formats import data_size, duration
from tracenas.models.checkpoints.source import ModelSource, open_source
from tracenas.pipeline.target import resolve_proxy, resolve_target
from tracenas.proxies.combination import choose
from tracenas.reporting.terminal import Outcome, Table, to_plain
from tracenas.scoring.workload import Memory, Shape, Workload, default_micro_batch, memory, per_stack, workload
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
    settings = SearchSettings(population=config.population, elites=config.elites, iterations=config.iterations)
    proxy = resolve_proxy(config.proxy, source)
    check_used(config.model_copy(update={"proxy": proxy}))
    choice = choose(proxy)
    arch = space.base if config.params is None else space.uniform()
    assert arch is not None  # `resolve_target` has refused such a budget
    rank = parse_rank(config.rank)
    vocabulary = int(source.config["vocab_size"])
    shape = _in_passes(_shape(config, source, trace_rank(choice.needs, rank)), blocks, space.base, hidden)
    head = source.family.head_weights(source.config)
    base_params = space.parameters(space.base)
    rates, each, total = None, None, None
    if not config.no_timing:
        rates, shape = _rates(config, source, shape)
        shape = _in_passes(shape, blocks, space.base, hidden)

        def timed(part: Shape) -> float:
            assert rates is not None and arch is not None
            return seconds(workload(blocks, arch, head, hidden, part), rates, part)

        once, refit = compensation_seconds(choice, blocks, arch, shape, rates.flops)
        each = seconds_per_candidate(choice, rank, shape, timed) + refit
        of_base = seconds(workload(blocks, space.base, head, hidden, shape), rates, shape)
        # The base's anchor and the pass for the saliency come before the candidates.
        total = (settings.planned + pool_size(choice)) * each + 1.5 * of_base + once
    return SearchPlan(
        config.model,
        source.family.model_type,
        base_params,
        space.parameters(space.smallest),
        None if config.params is None else space.window[1],
        None if config.params is None else space.window[0],
        _figures(space, arch, head, per_stack(blocks, shape).seq_len),
        settings.planned,
        shape,
        replace(
            memory(blocks, space.base, arch, base_params, vocabulary, hidden, shape),
            compensation=compensation_memory(choice, blocks, shape),
        ),
        rates,
        each,
        total,
        source.origin,
        None if config.sensitivity is None else predicted_rises(config.sensitivity, target),
    )


def _shape(config: PlanConfig, source: ModelSource, rank: int | None) -> Shape:
    if config.seq_len is not None and config.seq_len > source.positions:
        raise UserError(f"seq-len {config.seq_len}: the model has {source.positions} positions")
    length = config.seq_len or min(4096, source.positions)
    device = "cuda" if config.device.startswith("cuda") else "cpu"
    half = config.dtype in ("bf16", "fp16") or (config.dtype == "auto" and device == "cuda")
    return Shape(config.samples, length, 1, rank, 2 if half else 4, device)


def _in_passes(shape: Shape, blocks: tuple[Block, ...], base: Architecture, hidden: int) -> Shape:
    """The shape with the micro-batch that a search would take."""
    default = default_micro_batch(blocks, base, hidden, shape.seq_len, shape.element, shape.device)
    return replace(shape, micro_batch=min(shape.samples, default))


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


def _rates(config: PlanConfig, source: ModelSource, shape: Shape) -> "tuple[Rates, Shape]":
    """This machine's rates, and the shape with the device and dtype that `auto` comes to."""
    from tracenas.benchmark.machine import measure_rates
    from tracenas.models.checkpoints.loading import pick_device, pick_dtype
    from tracenas.threads import set_threads

    set_threads(config.threads)
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    hidden, heads = int(source.config["hidden_size"]), int(source.config["num_attention_heads"])
    rates = measure_rates(
        device,
        dtype,
        tokens=shape.micro_batch * shape.seq_len,
        hidden=hidden,
        width=int(source.config["intermediate_size"]),
        head_dim=int(source.config.get("head_dim") or hidden // heads),
        rank=shape.rank or 64,
    )
    return rates, replace(shape, device=device.type, element=dtype.itemsize)


def seconds(work: Workload, rates: "Rates", shape: Shape) -> float:
    """Estimated seconds of one evaluation: each kind of work at the rate it was measured at."""
    per_pair = rates.score_seconds_forward if shape.rank is None else rates.score_seconds
    thin = rates.flops if shape.rank == 0 else rates.thin_flops
    return (
        work.flops / rates.flops
        + work.trace_flops / thin
        + work.elements * shape.element / rates.bytes
        + work.score_pairs * per_pair
    )
