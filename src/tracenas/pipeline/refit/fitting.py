"""Refits of one candidate: their strength, the fit itself, and the losses before and after it."""

import math
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch

from tracenas.models.surgery.ordering import Key
from tracenas.paging import Keep, in_memory
from tracenas.pipeline.refit.aims import ChosenAim, choose_aim
from tracenas.pipeline.refit.fit import Fit, Outputs, refittable
from tracenas.pipeline.refit.losses import candidate_loss, candidate_losses
from tracenas.pipeline.refit.record import DEFAULT_RIDGE, ScoredRealisation
from tracenas.pipeline.refit.statistics import StoredGrams
from tracenas.pipeline.refit.text import Text, compensation_text, scored_text
from tracenas.pipeline.session import Session
from tracenas.refits.aim import Aim
from tracenas.refits.costs import MEMO_BYTES
from tracenas.refits.gram import gram_matrices
from tracenas.refits.realisation import CompensatedRealisation
from tracenas.refits.ridge import FittedRealisation
from tracenas.reporting.progress import phase
from tracenas.saliency.sensitivity.moments import input_moments
from tracenas.space.architecture import Architecture

__all__ = [
    "Compensation",
    "compensate",
    "compensated_realisation",
    "compensation",
    "rounded",
    "scored_loss",
]

_SCALES = {"mean": "the mean diagonal", "channel": "every channel's own diagonal"}
_LESS = 8
"""Times fewer refitted projections are remembered where memory is short."""
_HELD_OUT = 6
"""Every sixth sequence (at least one) is held out when the aim is chosen."""


@dataclass(frozen=True)
class Compensation:
    """A candidate's refitted output projections, and what became of its loss.

    Args:
        method: `ridge` or `sequential`.
        aim: λ and the share of the drift.
        trials: loss on held-out text by aim, if it was chosen among several (`choose_aim`).
        text: what it was fitted on.
        outputs: [rows, kept columns] per (block, sub-block), in the super-network's order, as they are stored.
        plain_loss: calibration loss before, nats per token.
        window_losses: of every window after, float64 [N].
        left: sub-blocks that are not refitted: fused experts.
        scale: what the ridge is relative to: the `mean` diagonal, or every `channel`'s own entry.
    """

    method: str
    aim: Aim
    trials: Mapping[Aim, float]
    text: Text
    outputs: Outputs
    plain_loss: float
    window_losses: torch.Tensor
    left: tuple[str, ...] = ()
    scale: str = "mean"

    @property
    def loss(self) -> float:
        """Calibration loss after, nats per token."""
        return float(self.window_losses.mean())

    def to_json(self) -> dict[str, Any]:
        """Everything but the tensors."""
        return {
            "method": self.method,
            "ridge": self.aim.ridge,
            "ridge_scale": self.scale,
            **({"drift": self.aim.drift} if self.method == "sequential" else {}),
            "trials": {self._label(a): v if math.isfinite(v) else None for a, v in self.trials.items()},
            "sequences": self.text.tokens.shape[0],
            "tokens": self.text.tokens.numel(),
            "separate_text": self.text.separate,
            "plain_loss": self.plain_loss,
            "loss": self.loss,
            **({"not_refitted": list(self.left)} if self.left else {}),
        }

    def facts(self) -> dict[str, str]:
        """Lines of the model card."""
        count, length = self.text.tokens.shape
        other = "other text than the calibration loss's" if self.text.separate else "the calibration loss's own text"
        trials = ", ".join(f"{self._label(aim)}: {value:.4f}" for aim, value in self.trials.items())
        of = "with the first blocks refitted" if self.method == "sequential" else "by strength"
        chosen = f" (held-out loss {of}: {trials})" if trials else ""
        left = {"not refitted (fused experts)": ", ".join(self.left)} if self.left else {}
        return {
            "compensation": f"{self.method}: output projections refitted to the base's sub-block outputs, no training",
            f"compensation's ridge, relative to {_SCALES[self.scale]}": f"{self._label(self.aim)}{chosen}",
            "compensation's text": f"{count * length:,} tokens ({count} × {length}), {other}",
            "calibration loss before compensation, nats per token": f"{self.plain_loss:.6f}",
            **left,
        }

    def _label(self, aim: Aim) -> str:
        """An aim in words: `0.1`, `0.1 drift 0.5`."""
        drift = f" drift {aim.drift:g}" if self.method == "sequential" else ""
        return f"{aim.ridge:g}{drift}"


def compensated_realisation(session: Session) -> CompensatedRealisation:
    """The realisation of proxies that need `compensated`: one pass of statistics over separate text.

    The pass is the sensitivity table's, where that was measured on this text and has put its matrices aside. So the
    base's units are in their own order in it, unless the super-network is there already.

    Raises:
        UserError: if the data holds no text beside the calibration.
    """
    tokens = compensation_text(session, required=True, keep=True).tokens
    with closing(StoredGrams(session.blocks)) as own:
        grams = session.grams or own
        permuted = session.net is not None and not session.net.restored
        if grams.kept and not grams.has(tokens) and not permuted:
            _put_aside(session, grams, tokens)
        net = session.supernet()
        with phase("factors of refits" if grams.has(tokens) else "statistics for refits", refittable(net)) as steps:
            found = grams.of(tokens, net.ordering) or gram_matrices(net.model, net.blocks, tokens, session.micro_batch)
            ridge, keep = session.refit.ridge or DEFAULT_RIDGE, session.loaded.keep
            scarce = keep is not in_memory or session.loaded.streamed
            memo = MEMO_BYTES // _LESS if scarce else MEMO_BYTES
            return CompensatedRealisation(net, steps.over(found), ridge, memo_bytes=memo, keep=keep)


def _put_aside(session: Session, grams: StoredGrams, tokens: torch.Tensor) -> None:
    """Make the matrices as a sensitivity table's pass does, so that a search gone on with has the same ones."""
    model, rows, keep = session.loaded.model, tokens.to(session.loaded.device), session.loaded.keep
    stream = grams.begin(model, tokens)
    with phase("statistics for refits", sum(bool(s.spec.units) for b in session.blocks for s in b.sub_blocks)) as steps:
        for key, moments in steps.over(input_moments(model, session.blocks, rows, session.micro_batch, keep, stream)):
            grams.put(key, moments[0].second)


def scored_loss(session: Session, arch: Architecture, scored: ScoredRealisation) -> float:
    """Calibration loss of a candidate as its search realised it, nats per token."""
    name, ridge = scored
    if name == "plain":
        return candidate_loss(session, arch)
    outputs = Fit(session, arch, name)(scored_text(session).tokens, (Aim(ridge),))[Aim(ridge)]
    return candidate_loss(session, arch, FittedRealisation(outputs))


def compensate(
    session: Session,
    arch: Architecture,
    method: str,
    text: Text,
    *,
    ridge: float | None,
    stored: Mapping[Key, torch.dtype],
    scale: str = "mean",
) -> Compensation:
    """Refit a candidate's output projections.

    Args:
        method: `ridge` (the dense model's statistics) or `sequential` (layer by layer on refitted inputs).
        ridge: relative strength; None: the one that is chosen. It and the share of the drift are chosen on held-out
            sequences of the compensation's text, fitted on the others; the final fit uses all of them.
        stored: dtypes that the outputs are written in; they are rounded to them.
        scale: what the ridge is relative to.

    Raises:
        UserError: if the dense model's activations are not finite.
    """
    fit = Fit(session, arch, method, scale)
    held = max(1, text.tokens.shape[0] // _HELD_OUT)
    chosen = choose_aim(fit, ridge, text.tokens[:-held], text.tokens[-held:])
    fitted = fit(text.tokens, (chosen.aim,))[chosen.aim]
    return compensation(fit, chosen, text, rounded(fitted, stored, session.loaded.keep))


def rounded(outputs: Outputs, stored: Mapping[Key, torch.dtype], keep: Keep) -> Outputs:
    """Output projections as a checkpoint holds them that stores them in `stored`, in the weights' dtype."""
    return {
        key: weight if stored[key] == weight.dtype else keep(weight.to(stored[key]), weight.dtype)
        for key, weight in outputs.items()
    }


def compensation(fit: Fit, chosen: ChosenAim, text: Text, outputs: Outputs) -> Compensation:
    """A refit with the calibration losses before and after it."""
    session, arch = fit.session, fit.arch
    fused = Counter(sub.spec.name for block in session.blocks for sub in block.sub_blocks if sub.stacked)
    left = tuple(f"{name} of {number} blocks" for name, number in fused.items())
    before = candidate_loss(session, arch)
    after = candidate_losses(session, arch, FittedRealisation(outputs))
    return Compensation(fit.method, chosen.aim, chosen.trials, text, outputs, before, after, left, fit.scale)
