"""The scales of a written candidate: factors of its norms, its output projections and its logits.

They are fitted on held-out text, which no refit has seen, and kept where the loss on the calibration falls with them.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tracenas.models.functionals.loss import predicted_tokens, predicting_states
from tracenas.models.surgery.supernet import Realisation, Supernet
from tracenas.pipeline.refit.entries import in_blocks
from tracenas.pipeline.refit.losses import candidate_loss
from tracenas.pipeline.session import Session
from tracenas.refits.factors import FactorTraining, factor_places, folded, train_factors
from tracenas.refits.logit_scale import best_scale
from tracenas.refits.replaced import ReplacedRealisation
from tracenas.reporting.progress import phase
from tracenas.resident import give_back
from tracenas.space.architecture import Architecture

__all__ = ["Scales", "fit_scales"]

_log = logging.getLogger("tracenas")

_LEAST_GAIN = 1e-2
"""Nats per token below which nothing is changed: so much is easily lost again on text of another kind."""


@dataclass(frozen=True)
class Scales:
    """What a candidate's norms, output projections and logits are multiplied by.

    Args:
        asked: `fit` or `logits`.
        before, after: loss on the calibration as it was, and as it is written, nats per token.
        factors: by the modules' names; that of the last norm is the logits'. Empty where nothing is gained.
        blocks, around: the tensors that they are part of, as `ReplacedRealisation` takes them.
    """

    asked: str
    before: float
    after: float
    factors: Mapping[str, float] = field(default_factory=dict)
    blocks: Mapping[int, Mapping[str, Tensor]] = field(default_factory=dict, repr=False)
    around: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Everything but the tensors."""
        before, after = (loss if math.isfinite(loss) else None for loss in (self.before, self.after))
        return {"asked": self.asked, "factors": dict(self.factors), "losses": {"before": before, "after": after}}

    def facts(self) -> dict[str, str]:
        """Lines of the model card."""
        if not self.factors:
            return {"scales": "none: nothing was gained"}
        least, most = min(self.factors.values()), max(self.factors.values())
        several = f"{len(self.factors)} factors of norms and output projections, {least:.3f} to {most:.3f}"
        return {
            "scales": several if len(self.factors) > 1 else f"the logits by {least:.4f}, in the last norm",
            "calibration loss before and after the scales": f"{self.before:.4f}, {self.after:.4f}",
        }


def fit_scales(
    session: Session,
    arch: Architecture,
    how: Realisation | None,
    before: float,
    held_out: Tensor,
    stored: Mapping[str, torch.dtype],
    *,
    training: FactorTraining | None,
) -> Scales:
    """The scales of least loss, where they are worth anything on text that they are not fitted on.

    Args:
        how: the candidate's realisation; None: the plain cut.
        before: its loss on the calibration, nats per token.
        held_out: int64 [N, L], what they are fitted on.
        stored: dtypes of the checkpoint's tensors, by the model's names.
        training: of factors of norms and output projections, too; the logits' alone where these gain nothing.
            None: the logits' alone.
    """
    asked, net = "logits" if training is None else "fit", session.supernet()
    fits = (_logits,) if training is None else (partial(_factors, training), _logits)
    for fit in fits:
        found = fit(session, arch, how, held_out)
        if not all(map(math.isfinite, found.values())):
            _log.warning("scales: the training diverged, and is not kept")
            continue
        tensors = _folded(net, arch, how or Realisation(), found)
        rounded = {name: value.to(stored[name]).to(value.dtype) for name, value in tensors.items()}
        blocks, around = in_blocks(session.blocks, rounded)
        after = candidate_loss(session, arch, ReplacedRealisation(how or Realisation(), blocks, around))
        if before - after >= _LEAST_GAIN:
            return Scales(asked, before, after, found, blocks, around)
        _log.info("scales: %.4f nats per token with %d factors, %.4f without: not kept", after, len(found), before)
    return Scales(asked, before, before)


def _folded(net: Supernet, arch: Architecture, how: Realisation, factors: Mapping[str, float]) -> dict[str, Tensor]:
    """A candidate's tensors with their factors, by the model's names."""
    tensors: dict[str, Tensor] = {}
    inside: set[str] = set()
    for index, (block, layer) in enumerate(zip(net.blocks, arch.layers, strict=True)):
        of_block = [path for path in factors if path.startswith(f"{block.path}.")]
        inside |= set(of_block)
        with net.realise_block(index, layer, how):
            tensors |= folded(net.model, of_block, [factors[path] for path in of_block])
    outside = [path for path in factors if path not in inside]
    with net.realise_outside(how) as model:
        return tensors | folded(model, outside, [factors[path] for path in outside])


def _factors(
    training: FactorTraining, session: Session, arch: Architecture, how: Realisation | None, windows: Tensor
) -> dict[str, float]:
    """Trained factors by module."""
    net = session.supernet()
    places = factor_places(net, arch, session.loaded.source.family.final_norm)
    give_back()
    with phase("train scales", training.steps) as steps:
        values = train_factors(net, arch, how, places, windows, training, steps.report)
    return dict(zip(places, values.tolist(), strict=True))


def _logits(session: Session, arch: Architecture, how: Realisation | None, windows: Tensor) -> dict[str, float]:
    """The factor of the logits, as that of the last norm."""
    net = session.supernet()
    with net.realise(arch, how) as model, phase("scale of the logits", len(windows)) as steps:
        entering = torch.cat(predicting_states(model, windows, session.micro_batch, report=steps.report))
        labels = windows[:, windows.shape[1] - predicted_tokens(model, windows.shape[1]) :].flatten()
        softcap = getattr(model.config, "final_logit_softcapping", None)
        best = best_scale(entering, model.get_output_embeddings().weight, labels.to(net.device), softcap)
    return {session.loaded.source.family.final_norm: best.factor}
