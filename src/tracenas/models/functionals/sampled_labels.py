"""Next-token loss with labels that are sampled from the model's softmax, for Fisher matrices.

Labels are drawn by inversion of the distribution function, from one uniform number per token, while the logits of a
chunk of tokens pass on to the loss: one product with the head serves both. Shapes: B sequences, T tokens, C tokens of
a chunk, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

from tracenas.models.functionals.loss import hidden_states, predicting, token_nll

__all__ = ["sampled_label_nll"]

_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Of the cumulated probabilities that are in memory at a time."""


class _Sampler:
    """Writes the label of every token where the loss is about to read it.

    Args:
        labels: int64 [tokens], written chunk by chunk.
        uniforms: float64 [tokens] in [0, 1).
    """

    def __init__(self, labels: Tensor, uniforms: Tensor) -> None:
        self.labels, self.uniforms = labels, uniforms

    def logits(self, part: slice, logits: Tensor, scale: float) -> None:
        """Draw the labels of a chunk, some tokens at a time, as sums in float64 take memory."""
        some = max(1, _ELEMENTS[logits.device.type] // logits.shape[1])
        drawn = zip(logits.split(some), self.uniforms[part].split(some), self.labels[part].split(some), strict=True)
        for logits_CV, uniforms_C, labels_C in drawn:
            labels_C.copy_(_drawn(logits_CV, uniforms_C, scale))

    def normaliser(self, part: slice, lse: Tensor) -> None:
        """Not used."""


def _drawn(logits_CV: Tensor, uniforms_C: Tensor, scale: float) -> Tensor:
    """Per token the first label whose cumulated probability exceeds the uniform number, int64 [C]."""
    probabilities_CV = (logits_CV - logits_CV.amax(dim=1, keepdim=True)).mul_(scale).exp_()
    cumulated_CV = probabilities_CV.cumsum(dim=1, dtype=torch.float64)
    levels_C1 = uniforms_C[:, None] * cumulated_CV[:, -1:]
    return torch.searchsorted(cumulated_CV, levels_C1, right=True)[:, 0].clamp_(max=logits_CV.shape[1] - 1)


def sampled_label_nll(model: Any, input_ids: Tensor, uniforms: Tensor) -> Tensor:
    """-log p(ŷ_t | x) summed over every token with a loss, ŷ_t ~ p(· | x): a differentiable float32 scalar, in nats.

    Args:
        model: a causal language model or an encoder–decoder.
        input_ids: int64 [B, T].
        uniforms: float64 [B, predicted tokens], what the labels are drawn by.
    """
    hidden = predicting(model, hidden_states(model, input_ids))
    flat = hidden.reshape(-1, hidden.shape[-1])
    labels = torch.zeros(flat.shape[0], dtype=torch.int64, device=flat.device)
    sampler = _Sampler(labels, uniforms.reshape(-1).to(flat.device))
    softcap = getattr(model.config, "final_logit_softcapping", None)
    return token_nll(flat, model.get_output_embeddings().weight, labels, softcap, sampler).sum()
