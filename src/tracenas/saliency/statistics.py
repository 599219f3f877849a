"""One pass over the dense model: what the calibration text does at the inputs of every output projection."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tracenas.families import Block
from tracenas.models.experts import watch_experts
from tracenas.models.loss import hidden_states
from tracenas.models.ordering import Key

__all__ = ["ColumnNorms", "column_norms"]


@dataclass(frozen=True)
class ColumnNorms:
    """‖X_j‖₂ per input column of every output projection, over all calibration tokens.

    Args:
        norms: float64 [columns] per sub-block, on the CPU; [experts, columns] where an MLP is a mixture of them.
        tokens: how many tokens were seen.
    """

    norms: dict[Key, Tensor]
    tokens: int


def column_norms(model: Any, blocks: Sequence[Block], tokens: Tensor, micro_batch: int) -> ColumnNorms:
    """Run the dense model over `tokens` [N, L] and collect ‖X_j‖₂ at every `o_proj` and `down_proj` (§3.5)."""
    squares: dict[Key, Tensor] = {}
    handles = []

    def watch(key: Key) -> Any:
        def hook(_: Any, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).float()
            total = x.square().sum(dim=0, dtype=torch.float64)
            squares[key] = squares[key] + total if key in squares else total

        return hook

    def watch_stack(key: Key, experts: int, columns: int) -> Any:
        squares[key] = torch.zeros(experts, columns, dtype=torch.float64, device=tokens.device)

        def see(expert: int, x: Tensor) -> None:
            squares[key][expert] += x.float().square().sum(dim=0, dtype=torch.float64)

        return see

    for index, block in enumerate(blocks):
        for sub in block.sub_blocks:
            if sub.spec.units and sub.stacked:
                output = sub.projection(sub.output)
                see = watch_stack((index, sub.spec.name), output.stack, output.columns)
                handles.append(watch_experts(model, block, sub, see))
            elif sub.spec.units:
                module = model.get_submodule(f"{block.path}.{sub.output}")
                handles.append(module.register_forward_pre_hook(watch((index, sub.spec.name))))
    try:
        with torch.no_grad():
            for batch in tokens.split(micro_batch):
                hidden_states(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return ColumnNorms({k: v.sqrt().cpu() for k, v in squares.items()}, tokens.numel())
