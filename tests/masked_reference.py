"""Masking: the published way to realise a candidate, and this project's independent reference.

The base's weights are multiplied by 0/1 masks in the base's own coordinates (TraceNAS §3.3). Nothing here uses
the saliency order, views or hooks, so agreement with the super-network is evidence.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tracenas.families import Block, Projection
from tracenas.families.description import IntArray

__all__ = ["Kept", "KeptWidth", "MaskedGradients", "masked", "masks"]

Kept = Mapping[tuple[int, str], IntArray | None]
"""Base ids of kept units per (block, sub-block); None where it is bypassed."""


def masks(projection: Projection, units: int, kept: IntArray) -> tuple[Tensor, Tensor]:
    """Row mask [rows] and column mask [columns], 1.0 where kept; [stack, …] where matrices are stacked."""
    out = []
    for axis in (0, 1):
        owner = projection.unit_ids(axis, units)
        out.append(torch.from_numpy((owner < 0) | np.isin(owner, kept)).float())
    return out[0], out[1]


class _Zero(nn.Module):
    """A sub-block that contributes nothing; what it returns beside, T5's position bias, is the masked module's own."""

    def __init__(self, outputs: int, masked: nn.Module | None) -> None:
        super().__init__()
        self.outputs, self.masked = outputs, masked

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Zeros."""
        zero = hidden_states * 0
        if self.masked is not None:
            return zero, *self.masked(hidden_states, *args, **kwargs)[1:]
        return zero if self.outputs == 1 else (zero, *([None] * (self.outputs - 1)))


class KeptWidth(nn.Module):
    """A norm over the width of all units, run over the kept coordinates [kept] of [width]; the others are zero.

    What the cut model computes: zeros in the mean of squares would shrink it.
    """

    def __init__(self, norm: nn.Module, kept: Tensor) -> None:
        super().__init__()
        self.norm, self.kept = norm, kept

    def forward(self, x: Tensor) -> Tensor:
        """The norm of the kept coordinates, in their places."""
        own = {name: p[self.kept] for name, p in self.norm.named_parameters()}
        inner: Tensor = torch.func.functional_call(self.norm, own, (x[..., self.kept],))
        return torch.zeros_like(x).index_copy(-1, self.kept, inner)


@contextmanager
def masked(model: nn.Module, blocks: Sequence[Block], kept: Kept) -> Iterator[dict[tuple[int, str, str], nn.Parameter]]:
    """The model with masked weights until the block ends; yields the masked weights, which require gradients.

    A bypassed sub-block is masked by replacing its module with one that returns zeros.
    """
    weights: dict[tuple[int, str, str], nn.Parameter] = {}
    with ExitStack() as undo:
        for index, block in enumerate(blocks):
            for sub in block.sub_blocks:
                if not sub.spec.units:
                    continue
                ids = kept[index, sub.spec.name]
                if ids is None:
                    path, _, name = f"{block.path}.{sub.module}".rpartition(".")
                    parent, module = model.get_submodule(path), model.get_submodule(f"{block.path}.{sub.module}")
                    undo.callback(setattr, parent, name, module)
                    setattr(parent, name, _Zero(sub.outputs, module if sub.position_bias is not None else None))
                    continue
                for projection in sub.projections:
                    path, name = projection.parameter
                    module = model.get_submodule(f"{block.path}.{path}")
                    rows, columns = masks(projection, sub.spec.units, ids)
                    weight = getattr(module, name)
                    rows, columns = rows.to(weight), columns.to(weight)
                    masked_weight = nn.Parameter(weight.detach() * rows[..., :, None] * columns[..., None, :])
                    undo.callback(setattr, module, name, weight)
                    setattr(module, name, masked_weight)
                    weights[index, sub.spec.name, projection.path] = masked_weight
                    bias = getattr(module, "bias", None)
                    if isinstance(bias, nn.Parameter):
                        undo.callback(setattr, module, "bias", bias)
                        module.bias = nn.Parameter(bias.detach() * rows, requires_grad=False)
                for norm in sub.width_norms:
                    path, _, name = f"{block.path}.{norm.path}".rpartition(".")
                    parent, stays = model.get_submodule(path), masks(norm, sub.spec.units, ids)[0].nonzero()[:, 0]
                    module = getattr(parent, name)
                    undo.callback(setattr, parent, name, module)
                    setattr(parent, name, KeptWidth(module, stays.to(module.weight.device)))
        yield weights


class MaskedGradients:
    """Dense gradients of the mean next-token loss through the masks: the definition of the trace (§3.4).

    Args:
        model: an unpermuted transformers model.
        blocks: where its units live.
    """

    def __init__(self, model: Any, blocks: Sequence[Block]) -> None:
        self.model, self.blocks = model, blocks

    def __call__(self, tokens: Tensor, kept: Kept) -> tuple[float, dict[tuple[int, str, str], Tensor]]:
        """`(loss, gradient per projection)`, the gradients masked, [rows, columns], in base coordinates."""
        with masked(self.model, self.blocks, kept) as weights, torch.enable_grad():
            read, predicted = tokens, tokens
            if self.model.config.is_encoder_decoder:
                read, predicted = (half.contiguous() for half in tokens.tensor_split([tokens.shape[1] // 2], dim=1))
            loss = self.model(input_ids=read, labels=predicted, use_cache=False).loss
            gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        out: dict[tuple[int, str, str], Tensor] = {}
        by_key = dict(zip(weights, gradients, strict=True))
        for index, block in enumerate(self.blocks):
            for sub in block.sub_blocks:
                ids = kept.get((index, sub.spec.name))
                if ids is None:
                    continue
                for projection in sub.projections:
                    key = (index, sub.spec.name, projection.path)
                    gradient = by_key[key]
                    rows, columns = masks(projection, sub.spec.units, ids)
                    dense = rows[..., :, None] * columns[..., None, :] * 0 if gradient is None else gradient
                    out[key] = dense * rows.to(dense)[..., :, None] * columns.to(dense)[..., None, :]
        return float(loss.detach()), out
