"""Next-token loss in chunks of tokens: the logits of a whole batch never exist at once.

Shapes: B sequences, T tokens, D hidden, V vocabulary, C tokens of a chunk.
"""

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["hidden_states", "next_token_nll", "token_nll"]

_CHUNK_ELEMENTS = {"cpu": 1 << 23, "cuda": 1 << 27}


class _TokenNLL(torch.autograd.Function):
    """-log softmax(softcap(h Wᵀ))[label] per token; the gradient in h is made in the same pass over the logits."""

    @staticmethod
    def forward(ctx: Any, hidden_TD: Tensor, weight_VD: Tensor, labels_T: Tensor, softcap: float | None) -> Tensor:
        needs_gradient = ctx.needs_input_grad[0]
        nll_T = torch.empty(hidden_TD.shape[0], dtype=torch.float32, device=hidden_TD.device)
        gradient_TD = torch.empty_like(hidden_TD) if needs_gradient else None
        chunk = max(1, _CHUNK_ELEMENTS[hidden_TD.device.type] // weight_VD.shape[0])
        for start in range(0, hidden_TD.shape[0], chunk):
            part = slice(start, start + chunk)
            labels_C1 = labels_T[part, None]
            logits_CV = (hidden_TD[part] @ weight_VD.T).float()
            if softcap is not None:
                logits_CV.div_(softcap).tanh_()
            scale = 1.0 if softcap is None else softcap
            slope_CV = None if softcap is None or not needs_gradient else 1 - logits_CV.square()
            top_C1 = logits_CV.amax(dim=1, keepdim=True)
            target_C1 = (logits_CV.gather(1, labels_C1) - top_C1) * scale
            logits_CV.sub_(top_C1).mul_(scale).exp_()
            total_C1 = logits_CV.sum(dim=1, keepdim=True)
            nll_T[part] = (total_C1.log() - target_C1)[:, 0]
            if gradient_TD is not None:
                logits_CV.div_(total_C1)
                logits_CV.scatter_add_(1, labels_C1, torch.full_like(total_C1, -1.0))
                if slope_CV is not None:
                    logits_CV.mul_(slope_CV)
                torch.mm(logits_CV.to(weight_VD.dtype), weight_VD, out=gradient_TD[part])
        if gradient_TD is not None:
            ctx.save_for_backward(gradient_TD)
        return nll_T

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient_TD,) = ctx.saved_tensors
        return gradient_TD * grad_outputs[0].to(gradient_TD.dtype)[:, None], None, None, None


def token_nll(hidden: Tensor, weight: Tensor, labels: Tensor, softcap: float | None = None) -> Tensor:
    """Negative log-likelihood of every label, in nats, float32.

    Args:
        hidden: final (normed) hidden states, [tokens, D], fp32 or bf16; differentiable.
        weight: the head's matrix, [V, D]; gets no gradient.
        labels: int64 [tokens].
        softcap: c where logits pass c·tanh(x/c) (Gemma 2).
    """
    result: Tensor = _TokenNLL.apply(hidden, weight, labels, softcap)  # type: ignore[no-untyped-call]
    return result


def hidden_states(model: Any, input_ids: Tensor) -> Tensor:
    """Final hidden states [B, T, D] of the model's decoder, without its head and without a cache."""
    decoder: nn.Module = model.base_model
    output: Tensor = decoder(input_ids=input_ids, use_cache=False).last_hidden_state
    return output


def next_token_nll(model: Any, input_ids: Tensor) -> Tensor:
    """Per-token loss -log p(x_{t+1} | x_{≤t}), [B, T-1], float32 nats."""
    hidden = hidden_states(model, input_ids)
    head = model.get_output_embeddings()
    batch, length, width = hidden.shape
    softcap = getattr(model.config, "final_logit_softcapping", None)
    flat = token_nll(
        hidden[:, :-1].reshape(-1, width),
        head.weight,
        input_ids[:, 1:].reshape(-1).to(hidden.device),
        softcap,
    )
    return flat.view(batch, length - 1)
