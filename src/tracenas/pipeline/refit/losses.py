"""Losses of candidates in the super-network, and how far they rise above the base's."""

import math

import torch

from tracenas.models.functionals.perplexity import window_losses
from tracenas.models.surgery.supernet import Realisation
from tracenas.pipeline.session import Session
from tracenas.reporting.progress import phase
from tracenas.resident import give_back
from tracenas.space.architecture import Architecture

__all__ = ["candidate_loss", "candidate_losses", "held_out_loss", "measured_rise"]


def candidate_loss(
    session: Session,
    arch: Architecture,
    how: Realisation | None = None,
    tokens: torch.Tensor | None = None,
) -> float:
    """Loss of a candidate in the super-network on `tokens`, by default the calibration, nats per token."""
    return float(candidate_losses(session, arch, how, tokens).mean())


def candidate_losses(
    session: Session,
    arch: Architecture,
    how: Realisation | None = None,
    tokens: torch.Tensor | None = None,
) -> torch.Tensor:
    """The same of every window, float64 [N]."""
    plain = how is None and tokens is None
    if plain and arch in session.plain_losses:
        return session.plain_losses[arch]
    windows = session.tokens if tokens is None else tokens
    give_back()
    with session.supernet().realise(arch, how) as model, phase("loss of the candidate") as steps:
        losses = window_losses(model, windows, session.micro_batch, report=steps.report)
    if plain:
        session.plain_losses[arch] = losses
    return losses


def measured_rise(session: Session, losses: torch.Tensor) -> dict[str, float]:
    """The rise of the calibration loss over the base's, nats per token.

    `measured_rise`, and `measured_rise_error`, the standard error of its mean over windows, where there are several.

    Args:
        losses: of every window of the calibration, float64 [N].
    """
    rise = losses - candidate_losses(session, session.space.base)
    error = {"measured_rise_error": float(rise.std() / len(rise) ** 0.5)} if len(rise) > 1 else {}
    return {"measured_rise": float(rise.mean()), **error}


def held_out_loss(session: Session, arch: Architecture, tokens: torch.Tensor, how: Realisation | None = None) -> float:
    """Loss of a candidate on held-out text, nats per token; infinite where it overflows."""
    loss = candidate_loss(session, arch, how, tokens)
    return loss if math.isfinite(loss) else math.inf
