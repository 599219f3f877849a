"""What a GPU holds at the peak of a command, with the whole model there or with its blocks streamed. No torch."""

from dataclasses import replace

from tracenas.families import Block, present
from tracenas.scoring.workload import Memory, Shape, memory
from tracenas.space.search_space import SearchSpace

__all__ = ["peaks"]

_BLOCKS = 3
"""Blocks on the device at most: the one that runs, the next one, and one whose memory is not free yet."""
_PER_ENTRY = 28
"""Bytes of a Gram matrix's entry while it is made, swept or refitted with."""
_MEMO = 1 << 26
"""Bytes of refitted projections that are remembered where blocks are streamed."""


def peaks(
    blocks: tuple[Block, ...],
    space: SearchSpace,
    vocabulary: int,
    hidden: int,
    shape: Shape,
    *,
    cuts: bool,
    measured: bool,
) -> tuple[int, int]:
    """Bytes on the device at the peak: with the whole model there, and with its blocks streamed.

    Args:
        space: of all architectures.
        vocabulary: entries of the vocabulary.
        hidden: width of the residual stream.
        shape: of a pass.
        cuts: whether candidates run, which have weights of their own.
        measured: whether statistics of the output projections' inputs are made.
    """
    base = space.base

    def passes(*, recomputed: bool) -> Memory:
        counted = space.parameters(base), vocabulary, hidden, replace(shape, recomputed=recomputed)
        return memory(blocks, base, base, *counted, refitted=cuts)

    block = shape.element * max(sum(s.parameters(s.units) for s in layer.sub_blocks) for layer in space.layers)
    projections = [sub.output_projection for _, sub in present(blocks)]
    columns, rows = max(p.columns for p in projections), max(p.rows for p in projections)
    work = 0
    if cuts:  # parts of the widest factor, and of what goes with it
        work += _MEMO + 4 * (columns**2 // 4 + 2 * rows * columns)
    if measured:
        work += _PER_ENTRY * columns**2 + 4 * 8 * rows**2
    whole, kept = passes(recomputed=False), passes(recomputed=True)
    least = kept.total - kept.weights + space.outside * shape.element + (_BLOCKS + cuts) * block
    return whole.total + work, min(whole.total, least) + work
