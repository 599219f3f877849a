"""The scales of a written candidate: factors of its norms and output projections, and of its logits.

No refit has seen the text that they are fitted on: the factors on the held-out text, the logits' on the calibration,
which also says whether the factors are kept.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tracenas.models.checkpoints.shards import Entry
from tracenas.models.functionals.loss import hidden_states, predicted_tokens, predicting
from tracenas.models.surgery.supernet import Realisation
from tracenas.pipeline.refit import SCALE_STEPS, SCALE_TOKENS
from tracenas.pipeline.refit.entries import in_block, trained_entries
from tracenas.pipeline.refit.fitting import candidate_loss
from tracenas.pipeline.session import Session
from tracenas.refits.factors import FactorTraining, ReplacedRealisation, factor_places, folded, train_factors
from tracenas.refits.logit_scale import BestScale, best_scale, scaled_norm
from tracenas.reporting.progress import phase
from tracenas.resident import give_back
from tracenas.space.architecture import Architecture

__all__ = ["Scales", "fit_scales"]

_log = logging.getLogger("tracenas")

_LEAST_GAIN = 1e-3
"""Nats per token below which nothing is changed."""


@dataclass(frozen=True)
class Scales:
    """What a candidate's norms, output projections and logits are multiplied by.

    Args:
        asked: `fit` or `logits`.
        before, after: loss on the calibration as it was, and as it is written, nats per token.
        factors: of norms and output projections by the modules' names; empty where they are not kept.
        logits: the factor of the logits beside them; 1 where it is not kept.
        tensors: all that are replaced, by the model's names, units in the super-network's order.
    """

    asked: str
    before: float
    after: float
    factors: Mapping[str, float] = field(default_factory=dict)
    logits: float = 1.0
    tensors: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    def realisation(self, session: Session, start: Realisation | None) -> Realisation | None:
        """What is written."""
        return _replaced(session, start, self.tensors) if self.tensors else start

    def entries(self, session: Session, arch: Architecture) -> dict[str, Entry]:
        """The tensors as `save_pruned` takes them."""
        net = session.supernet()
        blocks, around = in_block(net.blocks, self.tensors)
        plain = {name: Entry(name, tuple(value.shape), value.dtype, value.detach) for name, value in around.items()}
        return {**trained_entries(net, arch, blocks), **plain}

    def to_json(self) -> dict[str, Any]:
        """Everything but the tensors."""
        return {
            "asked": self.asked,
            "factors": dict(self.factors),
            "logits": self.logits,
            "losses": {"before": _finite(self.before), "after": _finite(self.after)},
        }

    def facts(self) -> dict[str, str]:
        """Lines of the model card."""
        lines = {"scale of the logits": f"{self.logits:.4f}, in the norm in front of the head"}
        if self.factors:
            least, most = min(self.factors.values()), max(self.factors.values())
            many = f"{len(self.factors)} factors of norms and output projections, {least:.3f} to {most:.3f}"
            lines["scales"] = f"{many}, in these tensors"
        return {**lines, "calibration loss before and after the scales": f"{self.before:.4f}, {self.after:.4f}"}


def _finite(loss: float) -> float | None:
    return loss if math.isfinite(loss) else None


def fit_scales(
    session: Session,
    arch: Architecture,
    how: Realisation | None,
    before: float,
    held_out: Tensor,
    stored: Mapping[str, torch.dtype],
    *,
    factors: bool,
) -> Scales:
    """The scales of least loss, where they are worth anything on text that they are not fitted on.

    Args:
        how: the candidate's realisation; None: the plain cut.
        before: its loss on the calibration, nats per token.
        held_out: int64 [N, L], what factors are trained on.
        stored: dtypes of the checkpoint's tensors, by the model's names.
        factors: of norms and output projections, too.
    """
    asked, kept, best = "fit" if factors else "logits", dict[str, float](), None
    tensors: dict[str, Tensor] = {}
    if factors:
        found, replaced = _factors(session, arch, how, held_out, stored)
        trained = _best_logits(session, arch, _replaced(session, how, replaced))
        if trained.after < before:
            kept, tensors, best = found, replaced, trained
        else:
            _log.info("scales: %.4f nats per token with factors, %.4f without: not kept", trained.after, before)
    best = best or _best_logits(session, arch, how)
    if not before - best.after >= _LEAST_GAIN:
        return Scales(asked, before, before)
    if best.factor == 1:
        return Scales(asked, before, best.before, kept, tensors=tensors)
    tensors |= _scaled_logits(session, arch, _replaced(session, how, tensors), best.factor, stored)
    after = candidate_loss(session, arch, _replaced(session, how, tensors))
    return Scales(asked, before, after, kept, best.factor, tensors)


def _factors(
    session: Session, arch: Architecture, how: Realisation | None, windows: Tensor, stored: Mapping[str, torch.dtype]
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Trained factors by module, and the tensors that they are part of; nothing where the training diverged."""
    net, training = session.supernet(), FactorTraining(SCALE_STEPS, SCALE_TOKENS)
    places = factor_places(net, arch, session.loaded.source.family.final_norm)
    give_back()
    with phase("train scales", training.steps) as steps:
        values = train_factors(net, arch, how, places, windows, training, steps.report).tolist()
    if not all(map(math.isfinite, values)):
        return {}, {}
    with net.realise(arch, how) as model:
        return dict(zip(places, values, strict=True)), _rounded(folded(model, places, values), stored)


def _best_logits(session: Session, arch: Architecture, how: Realisation | None) -> BestScale:
    """The factor of the logits of least loss on the calibration."""
    net, windows, entering = session.supernet(), session.tokens, []
    with net.realise(arch, how) as model, phase("scale of the logits", len(windows)) as steps, torch.no_grad():
        first = windows.shape[1] - predicted_tokens(model, windows.shape[1])
        for batch in windows.split(session.micro_batch):
            entering.append(predicting(model, hidden_states(model, batch.to(net.device))).flatten(0, 1))
            steps.advance(len(batch))
        softcap = getattr(model.config, "final_logit_softcapping", None)
        labels = windows[:, first:].flatten().to(net.device)
        return best_scale(torch.cat(entering), model.get_output_embeddings().weight, labels, softcap)


def _scaled_logits(
    session: Session, arch: Architecture, how: Realisation | None, factor: float, stored: Mapping[str, torch.dtype]
) -> dict[str, Tensor]:
    """The norm in front of the head with a factor, by the model's names."""
    path = session.loaded.source.family.final_norm
    with session.supernet().realise(arch, how) as model:
        norm = scaled_norm(model.get_submodule(path), factor)
    return _rounded({f"{path}.{name}": value for name, value in norm.items()}, stored)


def _replaced(session: Session, start: Realisation | None, tensors: Mapping[str, Tensor]) -> Realisation:
    blocks, around = in_block(session.blocks, tensors)
    return ReplacedRealisation(start or Realisation(), blocks, around)


def _rounded(tensors: Mapping[str, Tensor], stored: Mapping[str, torch.dtype]) -> dict[str, Tensor]:
    """As a checkpoint holds them that stores them in `stored`, in their dtypes."""
    return {name: value.to(stored[name]).to(value.dtype) for name, value in tensors.items()}
