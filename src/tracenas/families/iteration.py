"""A model's sub-blocks one after the other, and an architecture laid over them."""

from collections.abc import Iterator, Sequence

from tracenas.families.description import Block, Projection, SubBlock
from tracenas.space.architecture import Architecture, Layer

__all__ = ["Key", "active", "parameter_parts", "placed", "present", "within"]

Key = tuple[int, str]
"""(block index, sub-block name)."""


def present(blocks: Sequence[Block]) -> Iterator[tuple[Key, SubBlock]]:
    """`(key, sub-block)` of everything that has units (bypassed sub-blocks have none), in order."""
    return (((index, sub.spec.name), sub) for index, b in enumerate(blocks) for sub in b.sub_blocks if sub.spec.units)


def within(block: Block, layer: Layer) -> Iterator[tuple[SubBlock, int]]:
    """`(sub-block, kept units)` of one block, in order; 0 units where it is bypassed."""
    return ((sub, kept) for sub, (_, kept) in zip(block.sub_blocks, layer.kept, strict=True))


def placed(blocks: Sequence[Block], arch: Architecture) -> Iterator[tuple[int, SubBlock, int]]:
    """`(block, sub-block, kept units)` of every sub-block, in order; 0 units where it is bypassed."""
    for index, (block, layer) in enumerate(zip(blocks, arch.layers, strict=True)):
        for sub, kept in within(block, layer):
            yield index, sub, kept


def active(blocks: Sequence[Block], arch: Architecture) -> Iterator[tuple[int, SubBlock, int]]:
    """Those of `placed` that are not bypassed."""
    return ((index, sub, kept) for index, sub, kept in placed(blocks, arch) if kept)


def parameter_parts(block: Block) -> dict[str, tuple[SubBlock, Projection]]:
    """The parameters of one block that units lie in, by name: what they are part of, biases with their matrices."""
    parts: dict[str, tuple[SubBlock, Projection]] = {}
    for sub in block.sub_blocks:
        for projection in (*sub.projections, *sub.width_norms):
            module, name = projection.parameter
            parts[f"{module}.{name}"] = parts[f"{module}.bias"] = sub, projection
    return parts
