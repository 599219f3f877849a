"""The output functional of NIRVANA: the largest logit over the positions of a sequence, averaged over the vocabulary.

Shapes: B sequences, T positions, D hidden, V vocabulary, C entries of a chunk of the vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

from tracenas.models.functionals.loss import hidden_states

__all__ = ["max_logit"]

_CHUNK_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 22}


class _MaxLogit(torch.autograd.Function):
    """Per sequence; the gradient in the hidden states is made in the same pass over the vocabulary."""

    @staticmethod
    def forward(ctx: Any, hidden_BTD: Tensor, weight_VD: Tensor, softcap: float | None) -> Tensor:
        batch, length, width = hidden_BTD.shape
        vocabulary = weight_VD.shape[0]
        total_B = torch.zeros(batch, dtype=torch.float64, device=hidden_BTD.device)
        gradient_BTD = torch.zeros_like(hidden_BTD) if ctx.needs_input_grad[0] else None
        chunk = max(1, _CHUNK_ELEMENTS[hidden_BTD.device.type] // max(length, width))
        for b, hidden_TD in enumerate(hidden_BTD):
            pull_TD = torch.zeros(length, width, dtype=torch.float32, device=hidden_BTD.device)
            for weight_CD in weight_VD.split(chunk):
                largest_C, place_C = (hidden_TD @ weight_CD.T).float().max(dim=0)
                pull_CD = weight_CD.float()
                if softcap is not None:
                    squashed_C = torch.tanh(largest_C / softcap)
                    largest_C = softcap * squashed_C
                    pull_CD = pull_CD * (1 - squashed_C.square())[:, None]
                total_B[b] += largest_C.sum(dtype=torch.float64)
                if gradient_BTD is not None:
                    pull_TD.index_add_(0, place_C, pull_CD)
            if gradient_BTD is not None:
                gradient_BTD[b] = pull_TD / vocabulary
        if gradient_BTD is not None:
            ctx.save_for_backward(gradient_BTD)
        return (total_B / vocabulary).float()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (gradient_BTD,) = ctx.saved_tensors
        return gradient_BTD * grad_outputs[0].to(gradient_BTD.dtype)[:, None, None], None, None


def max_logit(model: Any, input_ids: Tensor) -> Tensor:
    """Mean over the vocabulary of max_t logit_{t,v}, per sequence: float32 [B], differentiable in the hidden states.

    Of positions with equal logits the first one gets the gradient. Logits exist for one sequence and a part of the
    vocabulary at a time.

    Args:
        model: a transformers causal language model.
        input_ids: int64 [B, T].
    """
    head = model.get_output_embeddings()
    softcap = getattr(model.config, "final_logit_softcapping", None)
    result: Tensor = _MaxLogit.apply(hidden_states(model, input_ids), head.weight, softcap)  # type: ignore[no-untyped-call]
    return result
