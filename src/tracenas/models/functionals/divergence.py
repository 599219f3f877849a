"""KL divergence between two models that share a head, in chunks of tokens: no batch of logits ever exists.

Shapes: T tokens, D hidden, V vocabulary, C tokens of a chunk.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["token_kl"]

_CHUNK_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 26}


def token_kl(hidden: Tensor, other: Tensor, weight: Tensor, softcap: float | None = None) -> Tensor:
    """KL(p ‖ q) = Σ_v p_v (log p_v - log q_v) per token, nats, float32 [T]; no gradient.

    Args:
        hidden: final (normed) hidden states that give p, [T, D].
        other: those that give q, [T, D].
        weight: the head's matrix, [V, D].
        softcap: c where logits pass c·tanh(x/c) (Gemma 2).
    """
    out_T = torch.empty(hidden.shape[0], dtype=torch.float32, device=hidden.device)
    chunk = max(1, _CHUNK_ELEMENTS[hidden.device.type] // weight.shape[0])
    with torch.no_grad():
        for start in range(0, hidden.shape[0], chunk):
            part = slice(start, start + chunk)
            log_p_CV = F.log_softmax(_logits(hidden[part], weight, softcap), dim=-1)
            log_q_CV = F.log_softmax(_logits(other[part], weight, softcap), dim=-1)
            out_T[part] = (log_p_CV.exp() * (log_p_CV - log_q_CV)).sum(dim=-1)
    return out_T


def _logits(hidden_CD: Tensor, weight_VD: Tensor, softcap: float | None) -> Tensor:
    logits_CV = (hidden_CD @ weight_VD.T).float()
    return logits_CV if softcap is None else softcap * torch.tanh(logits_CV / softcap)
