"""What scoring by a proxy, or by a combination of them, adds to a search's time and memory."""

from collections.abc import Callable
from dataclasses import replace

from tracenas.families import Block
from tracenas.pipeline.reference import POOL
from tracenas.pipeline.refit import DEFAULT_SAMPLES
from tracenas.proxies.combination import Choice
from tracenas.refits.costs import refit_costs, refit_memory
from tracenas.scoring.workload import Shape
from tracenas.space.architecture import Architecture

__all__ = ["compensation_memory", "compensation_seconds", "pool_size", "seconds_per_candidate", "trace_rank"]

Timed = Callable[[Shape], float]
"""Seconds of one pass of the candidate in this shape."""

_DOUBLE = 2.0
"""How much slower products are in float64."""
_FEW_STEPS = 6 * 4
"""Sequences that `few_steps` trains on."""


def trace_rank(needs: frozenset[str], rank: int) -> int | None:
    """Rank of the traces in a pass for these needs, None without a backward pass.

    A weight's gradient is what its trace at full rank is: the same product, whichever else is taken.
    """
    if needs & {"weight_gradients", "steps"}:
        return 0
    return rank if "trace" in needs else None


def seconds_per_candidate(choice: Choice, rank: int, shape: Shape, timed: Timed) -> float:
    """One plain pass and one compensated pass where there are proxies for them, and the steps of `few_steps`."""
    total = 0.0
    for refitted in (False, True):
        run = [p for p in choice.proxies if p.runs and ("compensated" in p.needs) is refitted]
        wanted = [p.needs - {"steps"} for p in run]
        if wanted:
            total += timed(replace(shape, rank=trace_rank(frozenset[str]().union(*wanted), rank)))
    if "steps" in choice.needs:
        total += _FEW_STEPS / shape.samples * timed(replace(shape, rank=0)) + timed(replace(shape, rank=None)) / 2
    return total


def compensation_seconds(
    choice: Choice, blocks: tuple[Block, ...], arch: Architecture, shape: Shape, flops: float
) -> tuple[float, float]:
    """`(once, per candidate)`: statistics and factors; and refits, as if no width were remembered."""
    if not choice.compensated:
        return 0.0, 0.0
    costs = refit_costs(blocks, arch, DEFAULT_SAMPLES * shape.seq_len)
    once = (costs.forward + costs.gram + _DOUBLE * costs.factor) / flops
    return once, costs.candidate / flops


def compensation_memory(choice: Choice, blocks: tuple[Block, ...], shape: Shape) -> int:
    """Bytes."""
    return refit_memory(blocks, DEFAULT_SAMPLES * shape.seq_len, shape.element) if choice.compensated else 0


def pool_size(choice: Choice) -> int:
    """Architectures that a combination's ranks are taken in, scored before the search."""
    return 0 if choice.single else POOL + 1
