"""Hidden states after every block, against the base's."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from tracenas.models.functionals.loss import tokens_of_stack
from tracenas.scoring.observers.observer import AnchoredObserver, spread
from tracenas.space.architecture import Architecture

__all__ = ["HIDDEN_POSITIONS", "HiddenObserver"]

HIDDEN_POSITIONS = 32
"""Positions per sequence whose hidden states are compared, evenly spaced."""


class HiddenObserver(AnchoredObserver):
    """Mean cosine per block. Memory: the base's states, one vector per block, sequence and compared position.

    At 7B (32 blocks of 4,096), 16 sequences, bf16: 128 MiB.
    """

    def hooks(self, arch: Architecture) -> Iterator[RemovableHandle]:
        """Read the states of every forward pass."""
        self._states: list[list[Tensor]] = [[] for _ in self.net.blocks]
        length, device = self.tokens.shape[1], self.net.device
        positions = [spread(tokens_of_stack(b.stack, length), HIDDEN_POSITIONS, device) for b in self.net.blocks]
        for block, states, at in zip(self.net.blocks, self._states, positions, strict=True):
            yield self.net.model.get_submodule(block.path).register_forward_hook(_reader(states, at))

    def anchor(self) -> None:
        """The base's states."""
        self._base = [torch.cat(parts) for parts in self._states]

    def result(self, arch: Architecture) -> dict[str, Any]:
        """`alignment`."""
        states, self._states = self._states, []
        cosines = [_cosine(torch.cat(parts), base) for parts, base in zip(states, self._base, strict=True)]
        return {"alignment": tuple(torch.stack(cosines).tolist())}


def _reader(states: list[Tensor], positions: Tensor) -> Callable[..., None]:
    def read(_: Any, __: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        states.append(hidden.detach()[:, positions])

    return read


def _cosine(states: Tensor, base: Tensor) -> Tensor:
    wide = torch.promote_types(states.dtype, torch.float32)
    return torch.cosine_similarity(states.to(wide), base.to(wide), dim=-1).mean(dtype=torch.float64)
