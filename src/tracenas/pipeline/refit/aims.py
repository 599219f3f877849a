"""The aim of a refit: its strength and its share of the drift, of the lowest loss on held-out text."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from tracenas.pipeline.refit import COMPARED_SHARE, DRIFT_TOKENS, RIDGES, compared_windows
from tracenas.pipeline.refit.fit import Fit, Outputs
from tracenas.pipeline.refit.losses import held_out_loss
from tracenas.pipeline.refit.record import DEFAULT_RIDGE
from tracenas.refits.aim import FIRST_DRIFTS, Aim, drifts_to_try
from tracenas.refits.ridge import FittedRealisation
from tracenas.refits.sequential import SequentialFit
from tracenas.reporting.progress import phase

__all__ = ["ChosenAim", "choose_aim", "strengths"]

_LEAST_BLOCKS = 4
"""Blocks that aims of sequential refits are compared on at least."""


@dataclass(frozen=True)
class ChosenAim:
    """What was chosen.

    Args:
        aim: of the lowest loss.
        trials: losses on held-out text by aim, nats per token; empty where nothing was compared.
        outputs: makes the refit of this aim on the text that it was chosen on, from what is fitted already.
    """

    aim: Aim
    trials: dict[Aim, float]
    outputs: Callable[[], Outputs]


def choose_aim(fit: Fit, ridge: float | None, tokens: torch.Tensor, held_out: torch.Tensor) -> ChosenAim:
    """The aim of the lowest loss on held-out text.

    `ridge`: every strength, the whole candidate. `sequential`: every strength, then shares of the drift, with the first
    blocks (a fifth, at least 4) as the candidate's and the others dense.

    Args:
        ridge: the strength that was asked for; None: those of `RIDGES`.
        tokens: text to fit on, int64 [N, L]; without any the first of all aims is taken.
        held_out: text to compare on.
    """
    ridges = strengths(fit.scale, ridge)
    if not len(tokens):
        aim = Aim(ridge or (DEFAULT_RIDGE if fit.scale == "mean" else ridges[0]))
        return ChosenAim(aim, {}, lambda: fit(tokens, (aim,))[aim])
    if fit.method == "sequential":
        return _sequential(fit, ridges, tokens, held_out[: compared_windows(DRIFT_TOKENS, held_out.shape[1])])
    losses = fit.losses(tuple(map(Aim, ridges)), tokens, held_out) if len(ridges) > 1 else {}
    best = min(losses, key=lambda aim: losses[aim]) if losses else Aim(ridges[0])
    return ChosenAim(best, losses, lambda: fit(tokens, (best,))[best])


def strengths(scale: str, ridge: float | None) -> tuple[float, ...]:
    """The strengths that are compared: all of the scale, or the one that was asked for."""
    return RIDGES[scale] if ridge is None else (ridge,)


def _sequential(fit: Fit, ridges: tuple[float, ...], tokens: torch.Tensor, held_out: torch.Tensor) -> ChosenAim:
    """The strength at the whole drift, then its share: the whole, half, and others where that may be worth it."""
    contest = _Contest(fit, tokens, held_out)
    if len(ridges) > 1:
        contest.enter(tuple(map(Aim, ridges)))
    (ridge,) = ridges if len(ridges) == 1 else (contest.best.ridge,)
    first = tuple(Aim(ridge, drift) for drift in FIRST_DRIFTS)
    contest.enter(tuple(aim for aim in first if aim not in contest.losses))
    if more := drifts_to_try(*(contest.losses[aim] for aim in first)):
        contest.enter(tuple(Aim(ridge, drift) for drift in more))
    return ChosenAim(contest.best, contest.losses, contest.outputs)


class _Contest:
    """Sequential refits of a candidate's first blocks, compared with the other blocks dense.

    Args:
        fit: of the candidate.
        tokens: text to fit on.
        held_out: text to compare on.
    """

    def __init__(self, fit: Fit, tokens: torch.Tensor, held_out: torch.Tensor) -> None:
        self._fit, self._tokens, self._held_out = fit, tokens, held_out
        layers, base = fit.arch.layers, fit.session.space.base.layers
        self._until = max(_LEAST_BLOCKS, -(-len(layers) // COMPARED_SHARE))
        self._begun = replace(fit.arch, layers=(*layers[: self._until], *base[self._until :]))
        self._leader: SequentialFit | None = None
        self.losses: dict[Aim, float] = {}
        """On held-out text by aim, nats per token, infinite where they overflow."""

    @property
    def best(self) -> Aim:
        """The aim of the lowest loss so far."""
        return min(self.losses, key=self.losses.__getitem__)

    def enter(self, aims: tuple[Aim, ...]) -> None:
        """Fit these and compare them with those before; of the best one the refit can go on."""
        refit = self._fit.begin(self._tokens, aims)
        fitted = self._fit.advance(refit, self._until)
        with phase("compare refits", len(aims)) as steps:
            for aim in steps.over(aims):
                how = FittedRealisation(fitted[aim])
                self.losses[aim] = held_out_loss(self._fit.session, self._begun, self._held_out, how)
        if self.best in fitted:
            refit.only(self.best)
            self._leader = refit

    def outputs(self) -> Outputs:
        """The whole refit of the best aim."""
        assert self._leader is not None
        return self._fit.advance(self._leader)[self.best]
