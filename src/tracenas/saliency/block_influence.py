"""Block influence (ShortGPT, arXiv:2403.03853, §3.1): how much a block turns the residual stream.

BI_l = 1 - E_t[x_tᵀ y_t / (‖x_t‖ ‖y_t‖)], x what enters the block and y what leaves it. It is the importance of both
sub-blocks of a block. Units within a block are ranked as `wanda` ranks them: they matter only in the block that is
cut where whole blocks do not meet the budget.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tracenas.families import Block
from tracenas.models.surgery.ordering import Saliencies
from tracenas.saliency import wanda
from tracenas.saliency.statistics import run_hooked

__all__ = ["influences", "saliency"]


def influences(model: Any, blocks: Sequence[Block], tokens: Tensor, micro_batch: int) -> list[float]:
    """BI of every block, over all tokens [N, L]."""
    sums = torch.zeros(2, len(blocks), dtype=torch.float64, device=tokens.device)
    handles = []

    def hook(index: int) -> Any:
        def see(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            entered = args[0] if args else kwargs["hidden_states"]
            left = output[0] if isinstance(output, tuple) else output
            cosine = torch.cosine_similarity(entered.float(), left.float(), dim=-1)
            sums[0, index] += cosine.sum(dtype=torch.float64)
            sums[1, index] += cosine.numel()

        return see

    for index, block in enumerate(blocks):
        handles.append(model.get_submodule(block.path).register_forward_hook(hook(index), with_kwargs=True))
    run_hooked(model, tokens, micro_batch, handles)
    return [float(x) for x in (1 - sums[0] / sums[1]).cpu()]


def saliency(model: Any, blocks: Sequence[Block], tokens: Tensor, micro_batch: int) -> Saliencies:
    """Wanda's saliency per unit, and BI as the importance of every sub-block."""
    per_unit, _ = wanda.saliency(model, blocks, tokens, micro_batch)
    influence = influences(model, blocks, tokens, micro_batch)
    return per_unit, {key: influence[key[0]] for key in per_unit}
