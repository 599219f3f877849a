"""The loss of every token from tiles of logits, some tokens by some words: what a processor has in its caches.

A running maximum and sum replace the row of all logits (online softmax). The matrix of the head is read once for many
tokens, and nothing of the vocabulary's length is written.

Shapes: T tokens, D hidden, V vocabulary, C tokens and W words of a tile.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["TILED", "tiled_nll"]

TILED = {"cpu"}
"""Kinds of devices whose losses are made so; on a GPU it is not measured."""
WORDS = 2048
ELEMENTS = 1 << 19
"""Logits of a tile: 2 MiB."""


def tiled_nll(hidden_TD: Tensor, weight_VD: Tensor, labels_T: Tensor, softcap: float | None) -> Tensor:
    """-log softmax(softcap(h Wᵀ))[label] per token, float32 [T]; no gradient."""
    nll_T = torch.empty(hidden_TD.shape[0], dtype=torch.float32, device=hidden_TD.device)
    chunk = max(1, ELEMENTS // min(WORDS, weight_VD.shape[0]))
    with torch.no_grad():
        for start in range(0, hidden_TD.shape[0], chunk):
            part = slice(start, start + chunk)
            hidden_CD = hidden_TD[part]
            top_C1, total_C1 = _maximum_and_sum(hidden_CD, weight_VD, softcap)
            target_C = _label_logits(hidden_CD, F.embedding(labels_T[part], weight_VD), softcap)
            nll_T[part] = (top_C1 + total_C1.log())[:, 0] - target_C
    return nll_T


def _maximum_and_sum(hidden_CD: Tensor, weight_VD: Tensor, softcap: float | None) -> tuple[Tensor, Tensor]:
    """m = max_v z_v and Σ_v exp(z_v - m) of the logits z, float32 [C, 1] each."""
    top_C1 = torch.full((hidden_CD.shape[0], 1), -torch.inf, device=hidden_CD.device)
    total_C1 = torch.zeros_like(top_C1)
    for weight_WD in weight_VD.split(WORDS):
        logits_CW = _capped((hidden_CD @ weight_WD.T).float(), softcap)
        higher_C1 = torch.maximum(top_C1, logits_CW.amax(dim=1, keepdim=True))
        total_C1.mul_((top_C1 - higher_C1).exp_()).add_(logits_CW.sub_(higher_C1).exp_().sum(dim=1, keepdim=True))
        top_C1 = higher_C1
    return top_C1, total_C1


def _label_logits(hidden_CD: Tensor, rows_CD: Tensor, softcap: float | None) -> Tensor:
    """The labels' own logits, rounded as those of the tiles are, float32 [C]."""
    wide = torch.promote_types(hidden_CD.dtype, torch.float32)
    logits_C = (hidden_CD.to(wide) * rows_CD.to(wide)).sum(dim=1).to(hidden_CD.dtype).float()
    return _capped(logits_C, softcap)


def _capped(logits: Tensor, softcap: float | None) -> Tensor:
    return logits if softcap is None else logits.div_(softcap).tanh_().mul_(softcap)
