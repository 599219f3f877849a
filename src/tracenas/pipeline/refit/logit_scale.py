"""The factor of a written candidate's logits: fitted on held-out text, part of the norm in front of the head."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tracenas.models.functionals.loss import hidden_states, predicted_tokens, predicting
from tracenas.models.surgery.supernet import Realisation
from tracenas.pipeline.refit import COMPARED_WINDOWS
from tracenas.pipeline.refit.fitting import candidate_loss
from tracenas.pipeline.session import Session
from tracenas.refits.logit_scale import BestScale, ScaledRealisation, best_scale, scaled_norm
from tracenas.reporting.progress import phase
from tracenas.space.architecture import Architecture

__all__ = ["LogitScale", "fit_logit_scale"]

_LEAST_GAIN = 1e-3
"""Nats per token below which the norm stays as it is."""


@dataclass(frozen=True)
class LogitScale:
    """What the logits are multiplied by.

    Args:
        best: the factor, and the loss on held-out text without and with it.
        tokens: of that text.
        norm: the norm in front of the head, by the model's names; as it was where nothing is gained.
        loss: of the candidate on the calibration, nats per token, with it; None where nothing is gained.
    """

    best: BestScale
    tokens: int
    norm: Mapping[str, Tensor]
    loss: float | None

    def realisation(self, start: Realisation | None) -> Realisation | None:
        """What is written."""
        return ScaledRealisation(start or Realisation(), self.norm) if self.norm else start

    def to_json(self) -> dict[str, Any]:
        """Everything but the tensors."""
        return {
            "written": bool(self.norm),
            "factor": self.best.factor,
            "tokens": self.tokens,
            "losses": {"before": self.best.before, "after": self.best.after},
        }

    def facts(self) -> dict[str, str]:
        """A line of the model card."""
        factor, before, after = self.best
        written = f"{factor:.4f}, in the final norm" if self.norm else "1"
        losses = f"{before:.4f} without, {after:.4f} with {factor:.4f}"
        return {"scale of the logits": f"{written} (loss on {self.tokens:,} held-out tokens: {losses})"}


def fit_logit_scale(
    session: Session,
    arch: Architecture,
    how: Realisation | None,
    held_out: torch.Tensor,
    stored: Mapping[str, torch.dtype],
) -> LogitScale:
    """The factor of least loss on held-out text, where it is worth anything.

    Args:
        how: the candidate's realisation; None: the plain cut.
        held_out: int64 [N, L]; as many windows as aims of refits are compared on.
        stored: dtypes of the checkpoint's tensors, by the model's names.
    """
    windows, net = held_out[:COMPARED_WINDOWS], session.supernet()
    length = windows.shape[1]
    with net.realise(arch, how) as model, phase("scale of the logits", len(windows)) as steps, torch.no_grad():
        entering = []
        for batch in windows.split(session.micro_batch):
            entering.append(predicting(model, hidden_states(model, batch.to(net.device))).flatten(0, 1))
            steps.advance(len(batch))
        labels = windows[:, length - predicted_tokens(model, length) :].flatten().to(net.device)
        softcap = getattr(model.config, "final_logit_softcapping", None)
        best = best_scale(torch.cat(entering), model.get_output_embeddings().weight, labels, softcap)
    norm: dict[str, Tensor] = {}
    loss = None
    if best.before - best.after >= _LEAST_GAIN:
        path = session.loaded.source.family.final_norm
        for name, tensor in scaled_norm(net.model.get_submodule(path), best.factor).items():
            norm[f"{path}.{name}"] = tensor.to(stored[f"{path}.{name}"]).to(tensor.dtype)
        loss = candidate_loss(session, arch, ScaledRealisation(how or Realisation(), norm))
    return LogitScale(best, windows.numel(), norm, loss)
