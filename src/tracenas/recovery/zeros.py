"""Keeping the zeros of an unstructured sparse model while it trains."""

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Zeros", "linear_weights"]


def linear_weights(model: Any) -> dict[str, Tensor]:
    """Weights of all linear layers but the head, by name."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return {
        f"{name}.weight": module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }


class Zeros:
    """Where the linear weights of a model are zero: 1 byte per weight of the layers that have any.

    Works on whole and on sharded parameters alike: everything is elementwise.
    """

    def __init__(self, model: Any) -> None:
        self._nonzero: list[tuple[Tensor, Tensor]] = []
        for weight in linear_weights(model).values():
            if weight.requires_grad and bool(_any_zero(weight)):
                self._nonzero.append((weight, weight.detach() != 0))

    def __len__(self) -> int:
        return len(self._nonzero)

    def mask_gradients(self) -> None:
        """No gradient where the weight is zero, so that neither clipping nor momentum sees one."""
        for weight, nonzero in self._nonzero:
            if weight.grad is not None:
                weight.grad.mul_(nonzero)

    def restore(self) -> None:
        """Zero again what must be zero."""
        with torch.no_grad():
            for weight, nonzero in self._nonzero:
                weight.mul_(nonzero)


def _any_zero(weight: Tensor) -> Tensor:
    local = weight.to_local() if hasattr(weight, "to_local") else weight
    return (local.detach() == 0).any()
