"""The matrices of a model that unstructured pruning may touch: the linear layers of its blocks."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from tracenas.errors import UserError
from tracenas.families import Block, Projection, SubBlock, present

__all__ = ["linear_module", "projections"]


def projections(blocks: Sequence[Block]) -> Iterator[tuple[int, SubBlock, Projection]]:
    """(block, sub-block, projection) of everything that is there (bypassed sub-blocks are not), in order."""
    return ((key[0], sub, projection) for key, sub in present(blocks) for projection in sub.projections)


def linear_module(model: Any, block: Block, projection: Projection) -> nn.Linear:
    """The module of a projection.

    Raises:
        UserError: if it is none that unstructured pruning knows (fused experts, for example).
    """
    path = f"{block.path}.{projection.path}"
    try:
        module = model.get_submodule(path)
    except AttributeError:
        module = None
    if not isinstance(module, nn.Linear):
        kind = type(module).__name__ if module is not None else "no module"
        raise UserError(f"{path} is {kind}: unstructured pruning handles linear layers only")
    return module
