"""A backward pass of a functional of a decoder, one block at a time, with the memory of one block.

Forward, block by block, what enters each block is put aside: in a temporary file where the model is in host memory,
in host memory where it is on an accelerator. Backward, from the last block to the first, every block runs again on a
micro-batch at a time and takes the gradient of its output, ∂f/∂y, to that of its input. So all of the calibration
passes through a block before the next one: its weights' gradients are complete when it is done.

A forward pass, a second one in the blocks and a backward pass, whatever the memory. Shapes: B sequences of a
micro-batch, T tokens, D hidden.
"""

import errno
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, TypeVar

import torch
from torch import Tensor

from tracenas.errors import UserError
from tracenas.families import Block
from tracenas.models.surgery.stepping import BlockRunner
from tracenas.models.surgery.streaming import on_device, resident
from tracenas.models.surgery.supernet import bypass

__all__ = ["Functional", "Shelf", "block_by_block"]

Functional = Callable[[Any, Tensor], Tensor]
"""(model, input ids [B, T]) → one differentiable value per sequence, [B], or their sum."""

Watch = TypeVar("Watch")


class Shelf:
    """Tensors put aside until they are asked for.

    Args:
        device: of the model: the CPU's go to a temporary file, others to host memory.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._file = tempfile.TemporaryFile() if device.type == "cpu" else None  # noqa: SIM115
        self._places: list[tuple[int, torch.Size, torch.dtype]] = []
        self._host: list[Tensor] = []

    def put(self, tensor: Tensor) -> int:
        """Put a tensor aside; its number.

        Raises:
            UserError: if the disk is full.
        """
        if self._file is None:
            self._host.append(tensor.cpu())
            return len(self._host) - 1
        try:
            place = self._file.seek(0, 2)
            self._file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
            self._file.flush()
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            where = tempfile.gettempdir()
            raise UserError(f"{where}: no space left for hidden states; point TMPDIR at a larger disk") from error
        self._places.append((place, tensor.shape, tensor.dtype))
        return len(self._places) - 1

    def get(self, number: int) -> Tensor:
        """The tensor, on the model's device."""
        if self._file is None:
            return self._host[number].to(self._device)
        place, shape, dtype = self._places[number]
        self._file.seek(place)
        data = bytearray(self._file.read(shape.numel() * dtype.itemsize))
        return torch.frombuffer(data, dtype=dtype).view(shape)

    def clear(self) -> None:
        """Have nothing aside any more."""
        self._places.clear()
        self._host.clear()
        if self._file is not None:
            self._file.seek(0)
            self._file.truncate()

    def close(self) -> None:
        """Give everything up."""
        self._host.clear()
        if self._file is not None:
            self._file.close()


def block_by_block(
    model: Any,
    blocks: Sequence[Block],
    tokens: Tensor,
    micro_batch: int,
    functional: Functional,
    watch: Callable[[int, ExitStack], Watch],
) -> Iterator[Watch]:
    """What `watch` has seen of every block's backward passes, the last block first.

    Args:
        model: a frozen causal language model with one stack of blocks.
        blocks: where they are, in forward order.
        tokens: int64 [N, T] on the model's device.
        micro_batch: sequences at a time.
        functional: f; what it gives for the micro-batches is summed.
        watch: attaches to a block until the stack closes.
    """
    runner = BlockRunner(model, blocks)
    shelf = Shelf(tokens.device)
    try:
        states = runner.embed(tokens, micro_batch)
        numbers: list[list[int]] = []
        for index in range(len(blocks)):
            numbers.append([shelf.put(state) for state in states])
            runner.advance(index, states)
        batches = zip(tokens.split(micro_batch), states, strict=True)
        slopes = [_of_last(model, blocks, ids, leaving, functional) for ids, leaving in batches]
        del batches, states
        for index in reversed(range(len(blocks))):
            with ExitStack() as undo:
                undo.enter_context(resident(model, blocks[index].path))
                seen = watch(index, undo)
                for place, slope in enumerate(slopes):
                    entering = shelf.get(numbers[index][place]).requires_grad_()
                    with torch.enable_grad():
                        runner.differentiable(index, entering).backward(slope)
                    assert entering.grad is not None
                    slopes[place] = entering.grad
            yield seen
    finally:
        shelf.close()


def _of_last(model: Any, blocks: Sequence[Block], ids: Tensor, hidden: Tensor, functional: Functional) -> Tensor:
    """∂f/∂h, h [B, T, D] what leaves the last block: norm and head alone are run with gradients."""
    leaving = on_device(model, hidden).detach().requires_grad_()
    with ExitStack() as undo:
        for block in blocks[:-1]:
            bypass(model, block, None, undo)

        def hand_on(_: Any, inputs: Any, output: Any) -> Any:
            return (leaving, *output[1:]) if isinstance(output, tuple) else leaving

        undo.callback(model.get_submodule(blocks[-1].path).register_forward_hook(hand_on).remove)
        with torch.enable_grad():
            functional(model, ids).sum().backward()
    assert leaving.grad is not None
    return leaving.grad
