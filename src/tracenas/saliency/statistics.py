"""One pass over the dense model: what the calibration text does at the inputs of every output projection."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from tracenas.families import Block, present
from tracenas.models.functionals.loss import hidden_states
from tracenas.models.surgery.experts import watch_inputs
from tracenas.models.surgery.ordering import Key

__all__ = ["ColumnMoments", "ColumnNorms", "column_moments", "column_norms", "run_hooked"]


@dataclass(frozen=True)
class ColumnNorms:
    """‖X_j‖₂ per input column of every output projection, over all calibration tokens.

    Args:
        norms: float64 [columns] per sub-block, on the CPU; [experts, columns] where an MLP is a mixture of them.
        tokens: how many tokens were seen.
    """

    norms: dict[Key, Tensor]
    tokens: int


@dataclass(frozen=True)
class ColumnMoments:
    """Σ X_j and Σ X_j² per input column of an output projection.

    Args:
        sums, squares: float64 [columns], on the CPU; [experts, columns] where an MLP is a mixture of them.
        count: tokens that were seen, float64 []; [experts, 1] of a mixture.
    """

    sums: Tensor
    squares: Tensor
    count: Tensor

    def variance(self) -> Tensor:
        """Of every column, over the tokens: (Σ X² - (Σ X)² / n) / (n - 1); 0 where there are fewer than two."""
        centred = self.squares - self.sums.square() / self.count.clamp(min=1)
        return centred.clamp(min=0) / (self.count - 1).clamp(min=1)


def run_hooked(model: Any, tokens: Tensor, micro_batch: int, hooks: Iterable[RemovableHandle]) -> None:
    """Run the dense model over `tokens` [N, L] without gradients; the hooks are removed, also after an exception."""
    try:
        with torch.no_grad():
            for batch in tokens.split(micro_batch):
                hidden_states(model, batch)
    finally:
        for hook in hooks:
            hook.remove()


def column_moments(model: Any, blocks: Sequence[Block], tokens: Tensor, micro_batch: int) -> dict[Key, ColumnMoments]:
    """Run the dense model over `tokens` [N, L] and collect the moments at every `o_proj` and `down_proj`."""
    sums: dict[Key, Tensor] = {}
    counts: dict[Key, Tensor] = {}
    handles = []
    for key, sub in present(blocks):
        output = sub.output_projection
        sums[key] = torch.zeros(2, output.stack or 1, output.columns, dtype=torch.float64, device=tokens.device)
        counts[key] = torch.zeros(output.stack or 1, 1, dtype=torch.float64, device=tokens.device)
        handles.append(watch_inputs(model, blocks[key[0]], sub, partial(_add, sums[key], counts[key])))
    run_hooked(model, tokens, micro_batch, handles)
    moments = {}
    for key, sub in present(blocks):
        (first, second), count = sums[key].cpu(), counts[key].cpu()
        moments[key] = ColumnMoments(*((first, second, count) if sub.stacked else (first[0], second[0], count[0, 0])))
    return moments


def _add(sums: Tensor, count: Tensor, expert: int, x: Tensor) -> None:
    x = x.float()
    sums[0, expert] += x.sum(dim=0, dtype=torch.float64)
    sums[1, expert] += x.square().sum(dim=0, dtype=torch.float64)
    count[expert] += x.shape[0]


def column_norms(model: Any, blocks: Sequence[Block], tokens: Tensor, micro_batch: int) -> ColumnNorms:
    """Run the dense model over `tokens` [N, L] and collect ‖X_j‖₂ at every `o_proj` and `down_proj` (§3.5)."""
    moments = column_moments(model, blocks, tokens, micro_batch)
    return ColumnNorms({key: m.squares.sqrt() for key, m in moments.items()}, tokens.numel())
