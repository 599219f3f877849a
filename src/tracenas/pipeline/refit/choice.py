"""Which realisation of an architecture is written: the one that was asked for, or the best on held-out text."""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tracenas.config import PruneConfig
from tracenas.pipeline.refit.fitting import RIDGES, Compensation, Fit, candidate_loss, compensate, compensation, rounded
from tracenas.pipeline.refit.text import HeldOut, Text, scored_text, stored_held_out, text_of, with_held_out
from tracenas.space.architecture import Architecture

if TYPE_CHECKING:
    import torch

    from tracenas.models.surgery.ordering import Key
    from tracenas.models.surgery.supernet import Supernet
    from tracenas.pipeline.session import Session

__all__ = ["WrittenRealisation", "choose"]


@dataclass(frozen=True)
class WrittenRealisation:
    """The realisation that is written, and what speaks for it.

    Args:
        written: `plain`, `ridge` or `sequential`; `scored`: the candidate's own refit.
        compensation: the refit; None: the plain cut.
        losses: on held-out text by realisation, nats per token, each with its best strength; empty: not compared.
        held_out: that text.
    """

    written: str
    compensation: Compensation | None = None
    losses: Mapping[str, float] = field(default_factory=dict)
    held_out: HeldOut | None = None

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        losses = {name: loss if math.isfinite(loss) else None for name, loss in self.losses.items()}
        text = {} if self.held_out is None else {"tokens": self.held_out.tokens.numel(), "text": self.held_out.where}
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
    config: PruneConfig,
    session: "Session",
    net: "Supernet",
    arch: Architecture,
    scored: tuple[str, float],
    stored: "Mapping[Key, torch.dtype]",
) -> WrittenRealisation:
    """The realisation that `config.compensate` asks for, and what it does on held-out text, where there is any.

    Args:
        scored: realisation and ridge that the candidate was scored with (`scored_as`).
        stored: dtypes that the checkpoint has output projections in.

    Raises:
        UserError: if there is too little text.
    """
    method = scored[0] if config.compensate == "auto" else config.compensate
    if method in ("none", "plain"):
        return WrittenRealisation("plain")
    given, ridge = config.data is not None, config.ridge
    if config.compensate == "auto":
        text, ridge = scored_text(session), scored[1]
    else:
        text = text_of(session, required=given and session.run is not None, reuse=not given)
    if method == "best":
        text, held_out = with_held_out(session, text)
        if held_out is not None:
            return _best(session, net, arch, text, held_out, ridge, scored, stored)
        print(
            f"one sequence of text in all: nothing to compare refits on, written as scored ({scored[0]})",
            file=sys.stderr,
        )
        return choose(config.model_copy(update={"compensate": "auto"}), session, net, arch, scored, stored)
    refit = compensate(session, net, arch, method, text, ridge=ridge, stored=stored)
    if (held_out := stored_held_out(session)) is None:
        return WrittenRealisation(method, refit)
    from tracenas.refits.ridge import FittedRealisation

    plain = candidate_loss(session, net, arch, tokens=held_out.tokens)
    loss = candidate_loss(session, net, arch, FittedRealisation(refit.outputs), held_out.tokens)
    if not loss <= plain:
        print(
            f"--compensate {config.compensate}: worse on held-out text ({loss:.4f} nats per token) than the plain cut "
            f"({plain:.4f}); --compensate best writes what is better",
            file=sys.stderr,
        )
    return WrittenRealisation(method, refit, {"plain": plain, method: loss}, held_out)


def _best(
    session: "Session",
    net: "Supernet",
    arch: Architecture,
    text: Text,
    held_out: HeldOut,
    ridge: float | None,
    scored: tuple[str, float],
    stored: "Mapping[Key, torch.dtype]",
) -> WrittenRealisation:
    """The plain cut and every refit, each strength, on held-out text; of equal ones the simplest."""
    import torch

    from tracenas.refits.ridge import FittedRealisation
    from tracenas.reporting.progress import stage_progress

    ridges = RIDGES if ridge is None else (ridge,)
    refits = [("ridge", "ridge", text, ridges), ("sequential", "sequential", text, ridges)]
    if scored[0] == "ridge":
        as_scored = scored_text(session)
        if scored[1] not in ridges or not torch.equal(as_scored.tokens, text.tokens):
            refits.insert(0, ("scored", "ridge", as_scored, scored[1:]))
    losses = {"plain": _finite(candidate_loss(session, net, arch, tokens=held_out.tokens))}
    trials: dict[str, dict[float, float]] = {name: {} for name, *_ in refits}
    best = None
    with stage_progress("compensation (best)", sum(len(tried) for *_, tried in refits)) as advance:
        for name, method, fitted_on, tried in refits:
            for strength, outputs in Fit(session, net, arch, method).each(fitted_on.tokens, tried):
                outputs = rounded(outputs, stored)
                loss = _finite(candidate_loss(session, net, arch, FittedRealisation(outputs), held_out.tokens))
                if loss < min(losses.values()):
                    best = (name, method, strength, fitted_on, outputs)
                trials[name][strength] = loss
                losses[name] = min(trials[name].values())
                advance()
    if best is None:
        return WrittenRealisation("plain", None, losses, held_out)
    name, method, strength, fitted_on, outputs = best
    refit = compensation(session, net, arch, method, strength, trials[name], fitted_on, outputs)
    return WrittenRealisation(name, refit, losses, held_out)


def _finite(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf
