"""Refits of one candidate: their strength, the fit itself, and the losses before and after it."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch

from tracenas.models.functionals.perplexity import perplexity
from tracenas.models.surgery.ordering import Key
from tracenas.models.surgery.supernet import Realisation, Supernet
from tracenas.pipeline.refit.record import DEFAULT_RIDGE, ScoredRealisation
from tracenas.pipeline.refit.text import Text, compensation_text, scored_text
from tracenas.pipeline.session import Session
from tracenas.refits.gram import gram_matrices
from tracenas.refits.penalty import PENALTIES
from tracenas.refits.realisation import CompensatedRealisation
from tracenas.refits.ridge import FittedRealisation, ridge_outputs
from tracenas.refits.sequential import sequential_outputs
from tracenas.reporting.progress import stage_progress
from tracenas.space.architecture import Architecture

__all__ = [
    "RIDGES",
    "Compensation",
    "Fit",
    "candidate_loss",
    "compensate",
    "compensated_realisation",
    "compensation",
    "rounded",
    "scored_loss",
]

Outputs = Mapping[Key, torch.Tensor]
"""Output projections [rows, kept columns] by (block, sub-block)."""

RIDGES: Mapping[str, tuple[float, ...]] = {"mean": (1e-4, 1e-3, 1e-2, 1e-1), "channel": (1e-1,)}
"""Strengths that are compared, by what they are relative to."""

_SCALES = {"mean": "the mean diagonal", "channel": "every channel's own diagonal"}
_HELD_OUT = 6
"""Every sixth sequence (at least one) is held out when the ridge is chosen."""


@dataclass(frozen=True)
class Compensation:
    """A candidate's refitted output projections, and what became of its loss.

    Args:
        method: `ridge` or `sequential`.
        ridge: λ relative to the diagonal of the Gram matrix.
        trials: loss on held-out sequences by ridge, if it was chosen among several.
        text: what it was fitted on.
        outputs: [rows, kept columns] per (block, sub-block), in the super-network's order, as they are stored.
        plain_loss, loss: calibration loss before and after, nats per token.
        left: sub-blocks that are not refitted: fused experts.
        scale: what the ridge is relative to: the `mean` diagonal, or every `channel`'s own entry.
    """

    method: str
    ridge: float
    trials: Mapping[float, float]
    text: Text
    outputs: Outputs
    plain_loss: float
    loss: float
    left: tuple[str, ...] = ()
    scale: str = "mean"

    def to_json(self) -> dict[str, Any]:
        """Everything but the tensors."""
        return {
            "method": self.method,
            "ridge": self.ridge,
            "ridge_scale": self.scale,
            "ridge_trials": {f"{r:g}": v if math.isfinite(v) else None for r, v in self.trials.items()},
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
        trials = ", ".join(f"{ridge:g}: {value:.4f}" for ridge, value in self.trials.items())
        chosen = f" (held-out loss by strength: {trials})" if trials else ""
        left = {"not refitted (fused experts)": ", ".join(self.left)} if self.left else {}
        return {
            "compensation": f"{self.method}: output projections refitted to the base's sub-block outputs, no training",
            f"compensation's ridge, relative to {_SCALES[self.scale]}": f"{self.ridge:g}{chosen}",
            "compensation's text": f"{count * length:,} tokens ({count} × {length}), {other}",
            "calibration loss before compensation, nats per token": f"{self.plain_loss:.6f}",
            **left,
        }


def compensated_realisation(session: Session) -> CompensatedRealisation:
    """The realisation of proxies that need `compensated`: one pass of statistics over separate text.

    Raises:
        UserError: if the data holds no text beside the calibration.
    """
    net = session.supernet()
    tokens = compensation_text(session, required=True, keep=True).tokens
    grams = gram_matrices(net.model, net.blocks, tokens, session.micro_batch)
    return CompensatedRealisation(net, grams, session.refit.ridge or DEFAULT_RIDGE)


def scored_loss(session: Session, arch: Architecture, scored: ScoredRealisation) -> float:
    """Calibration loss of a candidate as its search realised it, nats per token."""
    name, ridge = scored
    if name == "plain":
        return candidate_loss(session, arch)
    outputs = Fit(session, arch, name)(scored_text(session).tokens, (ridge,))[ridge]
    return candidate_loss(session, arch, FittedRealisation(outputs))


def candidate_loss(
    session: Session,
    arch: Architecture,
    how: Realisation | None = None,
    tokens: torch.Tensor | None = None,
) -> float:
    """Loss of a candidate in the super-network on `tokens`, by default the calibration, nats per token."""
    with session.supernet().realise(arch, how) as model:
        return perplexity(model, session.tokens if tokens is None else tokens, session.micro_batch).nll


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
        ridge: relative strength; None: the one of `RIDGES` with the lowest loss on held-out sequences of the
            compensation's text, fitted on the others; the final fit uses all of them.
        stored: dtypes that the outputs are written in; they are rounded to them.
        scale: what the ridge is relative to.

    Raises:
        UserError: if the dense model's activations are not finite.
    """
    fit = Fit(session, arch, method, scale)
    trials: dict[float, float] = {}
    count = text.tokens.shape[0]
    strengths = RIDGES[scale]
    searched = ridge is None and count > 1 and len(strengths) > 1
    with stage_progress(f"compensation ({method})", (len(strengths) if searched else 0) + 1) as advance:
        if searched:
            held = max(1, count // _HELD_OUT)
            for strength, outputs in fit.each(text.tokens[:-held], strengths):
                loss = candidate_loss(session, arch, FittedRealisation(outputs), text.tokens[-held:])
                trials[strength] = loss if math.isfinite(loss) else math.inf
                advance()
        chosen = ridge or (min(trials, key=lambda r: trials[r]) if trials else _default_ridge(scale))
        fitted = fit(text.tokens, (chosen,))[chosen]
        advance()
    return compensation(fit, chosen, trials, text, rounded(fitted, stored))


def _default_ridge(scale: str) -> float:
    """The strength where none is asked for and none is chosen."""
    return DEFAULT_RIDGE if scale == "mean" else RIDGES[scale][0]


def rounded(outputs: Outputs, stored: Mapping[Key, torch.dtype]) -> Outputs:
    """Output projections as a checkpoint holds them that stores them in `stored`, in the weights' dtype."""
    return {key: weight.to(stored[key]).to(weight.dtype) for key, weight in outputs.items()}


def compensation(fit: "Fit", ridge: float, trials: Mapping[float, float], text: Text, outputs: Outputs) -> Compensation:
    """A refit with the calibration losses before and after it."""
    session, arch = fit.session, fit.arch
    fused = Counter(sub.spec.name for block in session.blocks for sub in block.sub_blocks if sub.stacked)
    left = tuple(f"{name} of {number} blocks" for name, number in fused.items())
    before = candidate_loss(session, arch)
    after = candidate_loss(session, arch, FittedRealisation(outputs))
    return Compensation(fit.method, ridge, trials, text, outputs, before, after, left, fit.scale)


_LAST: WeakKeyDictionary[Supernet, tuple[Any, torch.Tensor, dict[float, Outputs]]] = WeakKeyDictionary()
"""The last fit in a super-network: `prune` asks for the scored candidate's twice, to check it and to write it."""


@dataclass(frozen=True)
class Fit:
    """Fits one candidate by one method.

    Args:
        method: `ridge` or `sequential`.
        scale: what ridges are relative to.
    """

    session: Session
    arch: Architecture
    method: str
    scale: str = "mean"

    def __call__(self, tokens: torch.Tensor, ridges: tuple[float, ...]) -> dict[float, Outputs]:
        """Refitted output projections by ridge; the same request again is not computed again."""
        net, batch = self.session.supernet(), self.session.micro_batch
        penalty = PENALTIES[self.scale]
        request = (self.arch, self.method, self.scale, ridges)
        last = _LAST.get(net)
        if last is not None and last[0] == request and torch.equal(last[1], tokens):
            return last[2]
        fitted: dict[float, Outputs]
        if self.method == "ridge":
            grams = gram_matrices(net.model, net.blocks, tokens, batch)
            fitted = dict(ridge_outputs(net, self.arch, grams, ridges, penalty))
        else:
            fitted = {
                ridge: sequential_outputs(net, self.arch, tokens, batch, ridge, penalty=penalty) for ridge in ridges
            }
        _LAST[net] = (request, tokens, fitted)
        return fitted

    def each(self, tokens: torch.Tensor, ridges: tuple[float, ...]) -> Iterator[tuple[float, Outputs]]:
        """Refitted output projections, one ridge after the other; `ridge` takes its statistics once for all."""
        together = self(tokens, ridges) if self.method == "ridge" else None
        for ridge in ridges:
            yield ridge, (together or self(tokens, (ridge,)))[ridge]
