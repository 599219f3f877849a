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

_CALLS = 0.001
"""Seconds of a block's calls in transformers, whatever its width: 8 blocks of the demo's model take 8 ms per token."""
_PROCESS = 5.0
"""Seconds in which a process imports torch and transformers: on a CPU peak memory is of one per model."""


def bench_seconds(
    config: BenchConfig,
    batches: "Sequence[TrialSettings]",
    estimate: SearchEstimate,
    archs: Sequence[Architecture],
    shape: Shape,
) -> float:
    """Of all models in turns, at every batch size; on a CPU peak memory takes another trial of each.

    Args:
        archs: the base among them.
    """
    turns, measured = config.warmup + config.trials, not config.no_memory and shape.device == "cpu"
    trials = [_trial(settings, estimate, arch, shape) for settings in batches for arch in archs]
    return turns * sum(trials) + (sum(trials) + _PROCESS * len(trials) if measured else 0.0)


def _trial(settings: "TrialSettings", estimate: SearchEstimate, arch: Architecture, shape: Shape) -> float:
    """A prefill, and tokens one by one: each reads all weights and the cache, or multiplies as long as that takes."""
    space, rates, sequences = estimate.target.space, estimate.rates, settings.batch_size
    prompt = replace(shape, samples=sequences, seq_len=settings.prompt, rank=None)
    source = estimate.target.source
    head = source.family.head_weights(source.config)
    cached = settings.prompt + settings.new_tokens // 2
    numbers = space.parameters(arch) + sequences * cached * costs.kv_cache_per_token(space.layers, arch)
    flops = sequences * costs.flops_per_token(space.layers, head, arch, cached)
    calls = _CALLS * sum(not layer.skip for layer in arch.layers)
    token = calls + max(numbers * shape.element / rates.bytes, flops / rates.flops)
    return calls + estimate.forward(arch, prompt, head=False) + (settings.new_tokens - 1) * token
