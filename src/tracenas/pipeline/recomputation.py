"""Whether a backward pass computes activations again: where keeping them takes more memory than there is. No torch."""

from dataclasses import replace

from tracenas.pipeline.target import PruningTarget
from tracenas.scoring.workload import Shape, memory

__all__ = ["as_it_fits"]

_SHARE = 0.9
"""Of the memory that there is: the count of what is kept is as exact as that."""


def as_it_fits(shape: Shape, target: PruningTarget, room: int | None, *, loaded: bool = False) -> Shape:
    """The shape, its blocks recomputed if the base's pass would not fit as it is; the results are the same.

    Args:
        room: bytes that there are; None: not known, so everything is kept.
        loaded: whether weights and libraries are in memory already, and room is what is left.
    """
    if shape.rank is None or room is None:
        return shape
    source, base = target.source, target.space.base
    counted = target.space.parameters(base), int(source.config["vocab_size"]), target.hidden
    used = memory(target.blocks, base, base, *counted, shape)
    needed = used.total - (used.weights + used.libraries if loaded else 0)
    return replace(shape, recomputed=True) if needed > _SHARE * room else shape
