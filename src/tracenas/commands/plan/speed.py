"""How long a run's bench takes in PyTorch, before there is a checkpoint."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tracenas.config import BenchConfig
from tracenas.pipeline.estimate import SearchEstimate
from tracenas.scoring.workload import Shape
from tracenas.space import costs
from tracenas.space.architecture import Architecture

if TYPE_CHECKING:
    from tracenas.benchmark.latency import TrialSettings

__all__ = ["bench_seconds"]


def bench_seconds(
    config: BenchConfig,
    batches: "Sequence[TrialSettings]",
    estimate: SearchEstimate,
    archs: Sequence[Architecture],
    shape: Shape,
) -> float:
    """Of all models in turns, at every batch size; peak memory takes another trial of each.

    Args:
        archs: the base among them.
    """
    turns = config.warmup + config.trials + (not config.no_memory)
    return sum(turns * _trial(settings, estimate, arch, shape) for settings in batches for arch in archs)


def _trial(settings: "TrialSettings", estimate: SearchEstimate, arch: Architecture, shape: Shape) -> float:
    """A prefill, and tokens one by one: each reads all weights and the cache, or multiplies as long as that takes."""
    space, rates, sequences = estimate.target.space, estimate.rates, settings.batch_size
    prompt = replace(shape, samples=sequences, seq_len=settings.prompt, rank=None)
    source = estimate.target.source
    head = source.family.head_weights(source.config)
    cached = settings.prompt + settings.new_tokens // 2
    numbers = space.parameters(arch) + sequences * cached * costs.kv_cache_per_token(space.layers, arch)
    flops = sequences * costs.flops_per_token(space.layers, head, arch, cached)
    token = max(numbers * shape.element / rates.bytes, flops / rates.flops)
    return estimate.forward(arch, prompt, head=False) + (settings.new_tokens - 1) * token
