"""Tensors that take the place of cut ones, as checkpoints are written from them."""

from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor

from tracenas.families import Block, parameter_parts, within
from tracenas.models.checkpoints.shards import Entry
from tracenas.models.surgery.supernet import Supernet
from tracenas.space.architecture import Architecture

__all__ = ["in_blocks", "replaced_entries"]


def in_blocks(
    blocks: Sequence[Block], tensors: Mapping[str, Tensor]
) -> tuple[dict[int, dict[str, Tensor]], dict[str, Tensor]]:
    """Tensors by the model's names: those in blocks, by block and name in it, and those outside."""
    within_blocks: dict[int, dict[str, Tensor]] = {}
    around = dict(tensors)
    for index, block in enumerate(blocks):
        prefix = f"{block.path}."
        if names := [name for name in around if name.startswith(prefix)]:
            within_blocks[index] = {name.removeprefix(prefix): around.pop(name) for name in names}
    return within_blocks, around


def replaced_entries(
    net: Supernet, arch: Architecture, blocks: Mapping[int, Mapping[str, Tensor]], around: Mapping[str, Tensor]
) -> dict[str, Entry]:
    """Tensors as `save_pruned` takes them: by the model's names, their units in the base's order.

    Args:
        blocks, around: as `ReplacedRealisation` takes them.
    """
    entries = {name: Entry(name, tuple(value.shape), value.dtype, value.detach) for name, value in around.items()}
    for index, tensors in blocks.items():
        block = net.blocks[index]
        parts = parameter_parts(block)
        widths = {sub.spec.name: kept for sub, kept in within(block, arch.layers[index])}
        for inner, tensor in tensors.items():
            name, make = f"{block.path}.{inner}", tensor.detach
            if inner in parts:
                sub, projection = parts[inner]
                make = partial(
                    net.in_base_order, (index, sub.spec.name), sub, projection, widths[sub.spec.name], tensor
                )
            entries[name] = Entry(name, tuple(tensor.shape), tensor.dtype, make)
    return entries
