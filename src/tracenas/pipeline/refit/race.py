"""A race of realisations of a candidate on held-out text: the first windows, or all of them where it is close."""

import math

import torch

from tracenas.models.surgery.supernet import Realisation
from tracenas.pipeline.refit import FIRST_TOKENS, compared_windows
from tracenas.pipeline.refit.losses import candidate_losses
from tracenas.pipeline.session import Session
from tracenas.space.architecture import Architecture

__all__ = ["RealisationRace"]

_CLEAR = 0.02
"""Nats per token by which the best is ahead of every other, in every one of the first windows, where that is enough."""


class RealisationRace:
    """Losses of a candidate's realisations on the same held-out windows.

    Args:
        tokens: of the held-out text, int64 [N, L].
    """

    def __init__(self, session: Session, arch: Architecture, tokens: torch.Tensor) -> None:
        self._session, self._arch = session, arch
        first = compared_windows(FIRST_TOKENS, tokens.shape[1])
        self._windows, self._further = tokens[:first], tokens[first:]
        self._entered: dict[str, Realisation | None] = {}
        self._losses: dict[str, torch.Tensor] = {}

    def enter(self, name: str, how: Realisation | None) -> None:
        """Measure a realisation on the first windows; None: the plain cut."""
        self._entered[name] = how
        self._losses[name] = self._measured(name, self._windows)

    def finish(self) -> None:
        """Measure all of them on the further windows, too, unless one is clearly ahead."""
        if len(self._further) and not self._clear():
            for name, first in self._losses.items():
                self._losses[name] = torch.cat([first, self._measured(name, self._further)])
            self._windows = torch.cat([self._windows, self._further])

    def losses(self) -> dict[str, float]:
        """By realisation, nats per token; infinite where they overflow."""
        return {name: float(losses.mean()) for name, losses in self._losses.items()}

    @property
    def tokens(self) -> int:
        """That the losses are of."""
        return self._windows.numel()

    def _clear(self) -> bool:
        means = self.losses()
        best = min(means, key=lambda name: means[name])
        if not math.isfinite(means[best]):
            return False
        return all(
            bool((losses - self._losses[best] >= _CLEAR).all()) for name, losses in self._losses.items() if name != best
        )

    def _measured(self, name: str, windows: torch.Tensor) -> torch.Tensor:
        """Losses of the windows, float64 [N]."""
        losses = candidate_losses(self._session, self._arch, self._entered[name], windows)
        return torch.where(torch.isfinite(losses), losses, torch.inf)
