"""A realised candidate with weights of its own: what is trained in it leaves the super-network as it was."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from tracenas.models.surgery.streaming import streamed_blocks

__all__ = ["private_weights"]


@contextmanager
def private_weights(model: nn.Module, dtype: torch.dtype = torch.float32) -> Iterator[list[nn.Parameter]]:
    """Every parameter of `model` replaced by a trainable copy in `dtype`, until the block ends (also by an exception).

    Entered inside `Supernet.realise`, it copies the candidate's slices only: modules that the realisation put aside
    are not reached. Tied parameters stay tied. Yields the copies, each once, in the model's order.

    Raises:
        ValueError: for a model whose blocks are streamed: weights that come and go cannot be trained.
    """
    if streamed_blocks(model) is not None:
        raise ValueError("the blocks of this model are streamed: their weights cannot be trained")
    copies: dict[int, nn.Parameter] = {}
    kept: list[Any] = []  # an id is unique only while its object lives
    with ExitStack() as undo:
        for module in list(model.modules()):
            for name, parameter in list(module._parameters.items()):
                if parameter is None:
                    continue
                if id(parameter) not in copies:
                    kept.append(parameter)
                    copies[id(parameter)] = nn.Parameter(parameter.detach().to(dtype, copy=True).contiguous())
                undo.callback(module._parameters.__setitem__, name, parameter)
                module._parameters[name] = copies[id(parameter)]
        yield list(copies.values())
