"""Blocks that keep their inputs only: activations are computed again when the backward pass reaches them."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch.utils.checkpoint import checkpoint

from tracenas.families import Block
from tracenas.models.surgery.streaming import streams
from tracenas.space.architecture import Architecture

__all__ = ["recomputed", "recomputed_blocks"]


@contextmanager
def recomputed(module: Any) -> Iterator[None]:
    """A block that keeps its inputs only, until the context ends."""
    if streams(module):  # which keeps no more in any pass with gradients
        yield
        return
    replaced = module.__dict__.get("forward")
    forward = module.forward

    def checkpointed(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    module.forward = checkpointed
    try:
        yield
    finally:
        if replaced is None:
            del module.forward
        else:
            module.forward = replaced


@contextmanager
def recomputed_blocks(model: Any, blocks: Sequence[Block], arch: Architecture) -> Iterator[None]:
    """All blocks of a realised candidate but those that are gone."""
    with ExitStack() as undo:
        for block, layer in zip(blocks, arch.layers, strict=True):
            if not layer.skip:
                undo.enter_context(recomputed(model.get_submodule(block.path)))
        yield
