"""A decoder's blocks run one at a time, as its own forward would call them: hidden states go forward block by block.

What a block is called with beside the hidden states (positions, masks) is recorded once, from a forward pass in
which every block lets its input through. Memory: the hidden states of all tokens, not the activations.

Shapes: B sequences of a micro-batch, T tokens, D hidden.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tracenas.errors import UserError
from tracenas.families import Block
from tracenas.models.functionals.loss import hidden_states
from tracenas.models.surgery.replacing import StandIn, replace_module
from tracenas.models.surgery.streaming import on_device, waiting
from tracenas.paging import Keep, in_memory

__all__ = ["BlockRunner", "Stop", "watch"]

Call = tuple[tuple[Any, ...], dict[str, Any]]


class Stop(Exception):
    """Raised by a watcher that has seen what it wanted: the rest of the block is not computed."""


class BlockRunner:
    """Runs single blocks of a transformers decoder.

    Args:
        model: a causal language model whose blocks take the hidden states as their first argument.
        blocks: where they are, in forward order.
        keep: where the hidden states lie; of a model whose blocks are streamed they wait on the CPU, as this says.

    Raises:
        UserError: for an encoder–decoder model, whose blocks are no single chain.
    """

    def __init__(self, model: Any, blocks: Sequence[Block], keep: Keep = in_memory) -> None:
        if blocks and blocks[0].stack:
            raise UserError("blocks run one at a time (refits, layer-wise statistics): not in an encoder–decoder model")
        self.model, self.blocks, self.keep = model, tuple(blocks), waiting(model, keep)
        self._calls: dict[tuple[int, ...], list[Call]] = {}

    def embed(self, tokens: Tensor, micro_batch: int) -> list[Tensor]:
        """What enters the first block, [B, T, D] per micro-batch of `tokens` [N, T]."""
        device = next(iter(self.model.parameters())).device
        batches = tokens.to(device).split(micro_batch)
        return [self._embed(batch) for batch in batches]

    def _embed(self, batch: Tensor) -> Tensor:
        calls: list[Call] = []
        states: list[Tensor] = []
        with ExitStack() as undo, torch.no_grad():
            for block in self.blocks:
                recorder = _Recorder(self.model.get_submodule(block.path), calls, states)
                replace_module(self.model, block.path, recorder, undo)
            hidden_states(self.model, batch)
        self._calls.setdefault(tuple(batch.shape), calls)
        return self.keep(states[0])

    def __call__(self, index: int, hidden: Tensor) -> Tensor:
        """Block `index` of the model, as it is now, on hidden states [B, T, D]."""
        with torch.no_grad():
            return self.differentiable(index, hidden)

    def advance(self, index: int, states: list[Tensor]) -> None:
        """Every micro-batch's hidden states over block `index`, in place."""
        for place, hidden in enumerate(states):
            states[place] = self.keep(self(index, hidden))

    def differentiable(self, index: int, hidden: Tensor) -> Tensor:
        """The same, in whatever mode of autograd is on."""
        args, kwargs = self._calls[tuple(hidden.shape[:2])][index]
        out = self.model.get_submodule(self.blocks[index].path)(on_device(self.model, hidden), *args, **kwargs)
        result: Tensor = out[0] if isinstance(out, tuple) else out
        return result

    @contextmanager
    def behind(self, hidden: Tensor) -> Iterator[Any]:
        """The model with hidden states [B, T, D] that have left its last block: its forward runs what is behind it."""
        hidden = on_device(self.model, hidden)
        with ExitStack() as undo:
            for block in self.blocks:
                replace_module(self.model, block.path, _Passed(self.model.get_submodule(block.path), hidden), undo)
            yield self.model


class _Passed(StandIn):
    """Gives what is known to leave the blocks, whatever enters them."""

    def __init__(self, original: nn.Module, hidden: Tensor) -> None:
        super().__init__(original)
        self.__dict__["_hidden"] = hidden

    def forward(self, *_: Any, **__: Any) -> Any:
        """What is known."""
        return self.__dict__["_hidden"]


class _Recorder(StandIn):
    """Lets the hidden states through and notes the call."""

    def __init__(self, original: nn.Module, calls: list[Call], states: list[Tensor]) -> None:
        super().__init__(original)
        self.__dict__["_seen"] = calls, states

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The hidden states as they came."""
        calls, states = self.__dict__["_seen"]
        calls.append((args, kwargs))
        states.append(hidden_states)
        return hidden_states


def watch(module: nn.Module, see: Callable[[Tensor, Tensor], None]) -> RemovableHandle:
    """Call `see(input, output)`, flattened to [tokens, features], on every forward pass of a linear module."""

    def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        see(inputs[0].detach().flatten(0, -2), output.detach().flatten(0, -2))

    return module.register_forward_hook(hook)
