"""KL(base ‖ candidate) per token, from the logits that the loss computes anyway.

KL = Σ_v p_v (log p_v - log q_v) = -H(p) - Σ_v p_v z_v + log Σ_v exp z_v, z the candidate's logits: one product with
the base's probabilities p. These are kept in float32 where they fit `PROBABILITY_BYTES`; otherwise the base's final
hidden states are, and its logits are computed again, a chunk of tokens at a time.

Shapes: N sequences of L tokens, D hidden, V vocabulary, C tokens of a chunk.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from tracenas.models.functionals.loss import LogitsWatch, decoder_module, entering_head, predicted_tokens, predicting
from tracenas.models.surgery.supernet import Supernet
from tracenas.scoring.observers.observer import AnchoredObserver
from tracenas.space.architecture import Architecture

__all__ = ["PROBABILITY_BYTES", "DivergenceObserver"]

PROBABILITY_BYTES = 1 << 30
"""What the base's probabilities may take (4 N (L - 1) V bytes); above it, 2 or 4 · N L D bytes of hidden states."""


class DivergenceObserver(AnchoredObserver):
    """Watches the loss's logits; the first record is the base's."""

    def __init__(self, net: Supernet, tokens: Tensor, *, rank: int, seed: int) -> None:
        super().__init__(net, tokens, rank=rank, seed=seed)
        self._each = predicted_tokens(net.model, tokens.shape[1])
        self._predicted = tokens.shape[0] * self._each
        head = net.model.get_output_embeddings().weight
        self._keeps_probabilities = 4 * self._predicted * head.shape[0] <= PROBABILITY_BYTES
        self._softcap: float | None = getattr(net.model.config, "final_logit_softcapping", None)
        self._probabilities: Tensor | None = None
        self._hidden: list[Tensor] = []
        self._entropy: Tensor | None = None

    def hooks(self, arch: Architecture) -> Iterator[RemovableHandle]:
        """Take part in every loss; of the base, its hidden states are kept if its probabilities do not fit."""
        self._cross = torch.zeros(self._predicted, dtype=torch.float64)
        if self._entropy is None:
            if self._keeps_probabilities:
                vocabulary = self.net.model.get_output_embeddings().weight.shape[0]
                self._probabilities = torch.empty(self._predicted, vocabulary, device=self.net.device)
            else:
                yield decoder_module(self.net.model).register_forward_hook(self._keep_hidden)

    def _keep_hidden(self, _: Any, __: Any, output: Any) -> None:
        hidden = predicting(self.net.model, entering_head(self.net.model, output.last_hidden_state.detach()))
        self._hidden.append(hidden.reshape(-1, hidden.shape[-1]))

    def logits_watch(self) -> LogitsWatch:
        """Itself."""
        return self

    def logits(self, part: slice, logits: Tensor, scale: float) -> None:
        """The part of the divergence that is linear in the logits; of the base, its probabilities."""
        at = self._global(part, len(logits))
        if self._entropy is None:
            p_CV = torch.softmax(logits * scale, dim=-1)
            if self._probabilities is not None:
                self._probabilities[at] = p_CV
        else:
            p_CV = self._probabilities[at] if self._probabilities is not None else self._again(at)
        linear = torch.einsum("cv,cv->c", p_CV, logits)
        self._cross[at] -= linear.double().cpu() * scale

    def normaliser(self, part: slice, lse: Tensor) -> None:
        """The rest of it."""
        self._cross[self._global(part, len(lse))] += lse.double().cpu()

    def _global(self, part: slice, count: int) -> slice:
        """Which of all predicted tokens the `count` tokens of a micro-batch's part are."""
        start = self.first * self._each + int(part.start)
        return slice(start, start + count)

    def _again(self, at: slice) -> Tensor:
        """The base's probabilities of some tokens, [C, V]."""
        logits = (self._kept[at] @ self.net.model.get_output_embeddings().weight.T).float()
        if self._softcap is not None:
            logits = torch.tanh(logits / self._softcap) * self._softcap
        return torch.softmax(logits, dim=-1)

    def anchor(self) -> None:
        """The base against itself has KL 0: what its cross entropy came to is its entropy H(p)."""
        self._entropy = self._cross
        if self._hidden:
            self._kept = torch.cat(self._hidden)
            self._hidden = []

    def result(self, arch: Architecture) -> dict[str, Any]:
        """`kls`."""
        assert self._entropy is not None
        kl = (self._cross - self._entropy).view(self.tokens.shape[0], -1).mean(dim=1)
        return {"kls": tuple(kl.tolist())}
