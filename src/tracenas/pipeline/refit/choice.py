"""Which realisation of an architecture is written: the one that was asked for, or the best on held-out text."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from tracenas.models.surgery.ordering import Key
from tracenas.pipeline.refit.aims import ChosenAim, choose_aim, strengths
from tracenas.pipeline.refit.fit import Fit, Outputs
from tracenas.pipeline.refit.fitting import Compensation, compensate, compensation, rounded
from tracenas.pipeline.refit.losses import candidate_loss
from tracenas.pipeline.refit.race import RealisationRace
from tracenas.pipeline.refit.record import ScoredRealisation
from tracenas.pipeline.refit.text import (
    HeldOut,
    Text,
    compensation_text,
    scored_text,
    stored_held_out,
    with_held_out,
)
from tracenas.pipeline.session import Session
from tracenas.refits.ridge import FittedRealisation
from tracenas.space.architecture import Architecture

__all__ = ["WrittenRealisation", "choose"]

_log = logging.getLogger("tracenas")

Dtypes = Mapping[Key, torch.dtype]
"""What a checkpoint stores output projections in."""


@dataclass(frozen=True)
class WrittenRealisation:
    """The realisation that is written, and what speaks for it.

    Args:
        written: `plain`, `ridge` or `sequential`; `scored`: the candidate's own refit.
        compensation: the refit; None: the plain cut.
        losses: on held-out text by realisation, nats per token, each with its best aim; empty: not compared.
        held_out: that text, and more of its kind.
        compared: tokens of it that the losses are of.
    """

    written: str
    compensation: Compensation | None = None
    losses: Mapping[str, float] = field(default_factory=dict)
    held_out: HeldOut | None = None
    compared: int = 0

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        losses = {name: loss if math.isfinite(loss) else None for name, loss in self.losses.items()}
        text = {} if self.held_out is None else {"tokens": self.compared, "text": self.held_out.where}
        return {"written": self.written, "losses": losses, **text}

    def facts(self) -> dict[str, str]:
        """Lines of the model card."""
        lines = self.compensation.facts() if self.compensation is not None else {"compensation": "none"}
        if self.held_out is None:
            return {**lines, "loss on held-out text": "not measured"}
        losses = ", ".join(f"{name} {loss:.4f}" for name, loss in self.losses.items())
        return {
            **lines,
            "loss on held-out text, nats per token": f"{losses}; written: {self.written}",
            "held-out text": self.held_out.where,
        }


def choose(
    session: Session, arch: Architecture, compensate_as: str, scored: ScoredRealisation, stored: Dtypes, *, data: bool
) -> WrittenRealisation:
    """The realisation that is asked for, and what it does on held-out text, where there is any.

    Args:
        compensate_as: `best`, `auto` (as scored), `none`, `ridge` or `sequential`.
        scored: what the candidate was scored with.
        stored: dtypes that the checkpoint has output projections in.
        data: whether the user gave text for it, which then is used in place of the run's.

    Raises:
        UserError: if there is too little text.
    """
    if compensate_as == "best":
        text, held_out = with_held_out(session, _text(session, data))
        if held_out is not None:
            return _best(session, arch, text, held_out, scored, stored)
        _log.warning("one sequence of text in all: nothing to compare refits on, written as scored (%s)", scored.method)
        compensate_as = "auto"
    method = scored.method if compensate_as == "auto" else compensate_as
    if method in ("none", "plain"):
        return WrittenRealisation("plain")
    if compensate_as == "auto":
        refit = compensate(session, arch, method, scored_text(session), ridge=scored.ridge, stored=stored)
    else:
        text = _text(session, data)
        how = session.refit
        refit = compensate(session, arch, method, text, ridge=how.ridge, stored=stored, scale=how.scale)
    if (held_out := stored_held_out(session)) is None:
        return WrittenRealisation(method, refit)
    plain = candidate_loss(session, arch, tokens=held_out.compared)
    loss = candidate_loss(session, arch, FittedRealisation(refit.outputs), held_out.compared)
    if not loss <= plain:
        _log.warning(
            "--compensate %s: worse on held-out text (%.4f nats per token) than the plain cut (%.4f); "
            "--compensate best writes what is better",
            compensate_as,
            loss,
            plain,
        )
    return WrittenRealisation(method, refit, {"plain": plain, method: loss}, held_out, held_out.compared.numel())


def _text(session: Session, data: bool) -> Text:
    """What to fit on: the user's text, else the run's."""
    return compensation_text(session, required=data and session.run is not None, reuse=not data)


class _Trial(NamedTuple):
    """A refit to compare: its name, how it is fitted, its text and the strength that was asked for."""

    name: str
    fit: Fit
    text: Text
    ridge: float | None


def _best(
    session: Session, arch: Architecture, text: Text, held_out: HeldOut, scored: ScoredRealisation, stored: Dtypes
) -> WrittenRealisation:
    """The plain cut and every refit, each with its best aim, on held-out text; of equal ones the simplest."""
    scale, ridge = session.refit.scale, session.refit.ridge
    refits = [_Trial(name, Fit(session, arch, name, scale), text, ridge) for name in ("ridge", "sequential")]
    if scored.method == "ridge":
        as_scored = scored_text(session)
        if (
            scale != "mean"
            or scored.ridge not in strengths(scale, ridge)
            or not torch.equal(as_scored.tokens, text.tokens)
        ):
            refits.insert(0, _Trial("scored", Fit(session, arch, "ridge"), as_scored, scored.ridge))
    race = RealisationRace(session, arch, held_out.compared)
    race.enter("plain", None)
    fitted: dict[str, tuple[_Trial, ChosenAim, Outputs]] = {}
    for refit in refits:
        chosen = choose_aim(refit.fit, refit.ridge, refit.text.tokens, held_out.compared)
        outputs = rounded(chosen.outputs(), stored, session.loaded.keep)
        refit.fit.forget()
        race.enter(refit.name, FittedRealisation(outputs))
        fitted[refit.name] = refit, chosen, outputs
    race.finish()
    losses = race.losses()
    if (best := min(losses, key=lambda name: losses[name])) not in fitted:
        return WrittenRealisation("plain", None, losses, held_out, race.tokens)
    refit, chosen, outputs = fitted[best]
    how = compensation(refit.fit, chosen, refit.text, outputs)
    return WrittenRealisation(best, how, losses, held_out, race.tokens)
