"""The KL divergence of what a model is now from what it was, on text."""

from typing import Any

import torch
from torch import Tensor

from tracenas.models.functionals.divergence import token_kl
from tracenas.models.functionals.loss import hidden_states

__all__ = ["Divergence"]


class Divergence:
    """KL(dense ‖ candidate), mean over the predicted tokens, nats; the dense model's states are kept, not its logits.

    Args:
        model: as the dense one now.
        tokens: int64 [N, L].
    """

    def __init__(self, model: Any, tokens: Tensor, micro_batch: int) -> None:
        self.model, self.tokens, self.micro_batch = model, tokens, micro_batch
        self._head = model.get_output_embeddings().weight
        self._softcap = getattr(model.config, "final_logit_softcapping", None)
        self._dense = self._predicting(len(tokens))

    def now(self, sequences: int) -> float:
        """Of the model as it is now, on the first sequences."""
        states = self._predicting(sequences)
        divergences = token_kl(self._dense[: len(states)], states, self._head, self._softcap)
        return float(divergences.mean(dtype=torch.float64))

    def _predicting(self, sequences: int) -> Tensor:
        """Final hidden states that predict a token, [tokens, D]."""
        with torch.no_grad():
            batches = self.tokens[:sequences].split(self.micro_batch)
            return torch.cat([hidden_states(self.model, ids)[:, :-1].flatten(0, 1) for ids in batches])
