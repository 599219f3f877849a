"""What a calibration set leads to: the model pruned with it, and its divergence from the dense one on held-out text."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tracenas.errors import UserError
from tracenas.models.checkpoints.loading import LoadedModel
from tracenas.models.functionals.divergence import token_kl
from tracenas.models.functionals.loss import predicting_states
from tracenas.models.surgery.supernet import Supernet
from tracenas.pipeline.one_shot import allocate_budget, rank_units
from tracenas.pipeline.target import PruningTarget

__all__ = ["SetMeasurer", "in_worker", "measuring"]


@dataclass(frozen=True)
class SetMeasurer:
    """Prunes with one set after the other; the model's units are in the base's order before and after each.

    Args:
        sets: token ids, int64 [samples, L] each.
        texts: held-out windows of one or two sources, int64 [N, L].
        dense: final hidden states of the dense model on each of them (`predicting_states`).
        batch: sequences per forward pass.
    """

    target: PruningTarget
    loaded: LoadedModel
    saliency: str
    allocation: str
    gamma: float | None
    sets: Sequence[Tensor]
    texts: Sequence[Tensor]
    dense: Sequence[Sequence[Tensor]]
    batch: int

    def measure(self, number: int) -> tuple[list[float], int]:
        """KL(dense ‖ pruned) per text, nats per token, and the pruned model's parameters.

        Raises:
            UserError: if a divergence is not finite.
        """
        target, loaded = self.target, self.loaded
        ordering, importance = rank_units(target, loaded, self.saliency, self.sets[number], self.batch)
        arch = allocate_budget(target, ordering, importance, self.allocation, self.gamma).architecture
        net = Supernet(loaded.model, target.blocks, ordering)
        with net.realise(arch) as model:
            kls = [
                _divergence(loaded, before, predicting_states(model, text, self.batch))
                for text, before in zip(self.texts, self.dense, strict=True)
            ]
        net.restore()
        return kls, target.space.parameters(arch)


def measuring(measurer: SetMeasurer) -> Callable[[int], dict[str, Any]]:
    """Answers the number of a set with what `measure` says, or with why it cannot be used."""

    def answer(number: int) -> dict[str, Any]:
        try:
            kls, params = measurer.measure(number)
        except UserError as error:
            return {"refused": str(error)}
        return {"kls": kls, "params": params}

    return answer


def in_worker(measurer: SetMeasurer) -> Callable[[int], dict[str, Any]]:
    """The same in a process that shares the weights with others: it permutes its own copy of them."""
    with torch.no_grad():
        for parameter in measurer.loaded.model.parameters():
            parameter.data = parameter.data.clone()
    return measuring(measurer)


def _divergence(loaded: LoadedModel, before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Mean KL(dense ‖ pruned) over all predicted tokens, nats.

    Raises:
        UserError: if it is not finite.
    """
    head = loaded.model.get_output_embeddings().weight
    softcap = getattr(loaded.model.config, "final_logit_softcapping", None)
    total, count = 0.0, 0
    for p, q in zip(before, after, strict=True):
        total += float(token_kl(p, q, head, softcap).sum(dtype=torch.float64))
        count += p.shape[0]
    if not math.isfinite(total):
        raise UserError("the divergence of a pruned model is not finite; try dtype=fp32, or a larger budget")
    return total / count
