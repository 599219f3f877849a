"""One pass over the dense model: what the calibration text does at the inputs of every output projection."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from tracenas.families import Block
from tracenas.models.functionals.loss import hidden_states
from tracenas.models.surgery.experts import watch_experts
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
    found: dict[Key, ColumnMoments] = {}
    handles = []

    def watch(key: Key, columns: int, experts: int) -> Any:
        stack = (experts,) if experts else ()
        sums = torch.zeros(2, *stack, columns, dtype=torch.float64, device=tokens.device)
        count = torch.zeros((experts, 1) if experts else (), dtype=torch.float64, device=tokens.device)
        found[key] = ColumnMoments(sums[0], sums[1], count)

        def see(expert: int | None, x: Tensor) -> None:
            at = ... if expert is None else expert
            x = x.float()
            sums[0][at] += x.sum(dim=0, dtype=torch.float64)
            sums[1][at] += x.square().sum(dim=0, dtype=torch.float64)
            count[at] += x.shape[0]

        return see

    def hook(see: Any) -> Any:
        return lambda _, inputs: see(None, inputs[0].detach().reshape(-1, inputs[0].shape[-1]))

    for index, block in enumerate(blocks):
        for sub in (s for s in block.sub_blocks if s.spec.units):
            output = sub.output_projection
            see = watch((index, sub.spec.name), output.columns, output.stack)
            if sub.stacked:
                handles.append(watch_experts(model, block, sub, see))
            else:
                module = model.get_submodule(f"{block.path}.{sub.output}")
                handles.append(module.register_forward_pre_hook(hook(see)))
    run_hooked(model, tokens, micro_batch, handles)
    return {k: ColumnMoments(m.sums.cpu(), m.squares.cpu(), m.count.cpu()) for k, m in found.items()}


def column_norms(model: Any, blocks: Sequence[Block], tokens: Tensor, micro_batch: int) -> ColumnNorms:
    """Run the dense model over `tokens` [N, L] and collect ‖X_j‖₂ at every `o_proj` and `down_proj` (§3.5)."""
    moments = column_moments(model, blocks, tokens, micro_batch)
    return ColumnNorms({key: m.squares.sqrt() for key, m in moments.items()}, tokens.numel())
