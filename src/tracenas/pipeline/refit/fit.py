"""Fits of one candidate's output projections."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch

from tracenas.families import present
from tracenas.models.surgery.ordering import Key
from tracenas.models.surgery.supernet import Supernet
from tracenas.pipeline.refit.losses import held_out_loss
from tracenas.pipeline.session import Session
from tracenas.refits.aim import Aim
from tracenas.refits.gram import gram_matrices
from tracenas.refits.penalty import PENALTIES
from tracenas.refits.ridge import FittedRealisation, ridge_outputs
from tracenas.refits.sequential import SequentialFit
from tracenas.reporting.progress import phase
from tracenas.resident import give_back
from tracenas.space.architecture import Architecture

__all__ = ["Fit", "Outputs", "refittable"]

Outputs = Mapping[Key, torch.Tensor]
"""Output projections [rows, kept columns] by (block, sub-block)."""

_LAST: WeakKeyDictionary[Supernet, tuple[Any, torch.Tensor, Mapping[Aim, Outputs]]] = WeakKeyDictionary()
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

    def __call__(self, tokens: torch.Tensor, aims: tuple[Aim, ...]) -> Mapping[Aim, Outputs]:
        """Refitted output projections by aim; of the same text they are not computed again."""
        net = self.session.supernet()
        request = (self.arch, self.method, self.scale)
        last = _LAST.get(net)
        if last is not None and last[0] == request and torch.equal(last[1], tokens) and last[2].keys() >= set(aims):
            return last[2]
        fitted = self._fitted(tokens, aims)
        _LAST[net] = (request, tokens, fitted)
        return fitted

    def forget(self) -> None:
        """Drop what is kept of the last fit in this super-network."""
        _LAST.pop(self.session.supernet(), None)

    def advance(self, begun: SequentialFit, until: int | None = None) -> Mapping[Aim, Outputs]:
        """Let a sequential refit go on, visibly, to block `until` or to the end; what it has by then."""
        with phase("refit (sequential)") as steps:
            return begun.advance(until, steps.report)

    def losses(self, aims: tuple[Aim, ...], tokens: torch.Tensor, held_out: torch.Tensor) -> dict[Aim, float]:
        """Losses on held-out text by aim, infinite where they overflow."""
        fitted = self(tokens, aims)
        with phase("compare refits", len(aims)) as steps:
            return {
                aim: held_out_loss(self.session, self.arch, held_out, FittedRealisation(fitted[aim]))
                for aim in steps.over(aims)
            }

    def begin(self, tokens: torch.Tensor, aims: tuple[Aim, ...]) -> SequentialFit:
        """A sequential refit that goes forward as it is told to."""
        give_back()
        keep, penalty = self.session.loaded.keep, PENALTIES[self.scale]
        net, batch, grams = self.session.supernet(), self.session.micro_batch, self.session.grams
        stored = None if grams is None else grams.stream(tokens, keep)
        return SequentialFit(net, self.arch, tokens, batch, aims, penalty=penalty, keep=keep, stream=stored)

    def _fitted(self, tokens: torch.Tensor, aims: tuple[Aim, ...]) -> Mapping[Aim, Outputs]:
        if self.method == "sequential":
            return self.advance(self.begin(tokens, aims))
        net, penalty, keep = self.session.supernet(), PENALTIES[self.scale], self.session.loaded.keep
        give_back()
        with phase("refit (ridge)", refittable(net)) as steps:
            by_ridge = ridge_outputs(
                net, self.arch, steps.over(self._grams(tokens)), [aim.ridge for aim in aims], penalty, keep
            )
            return {aim: by_ridge[aim.ridge] for aim in aims}

    def _grams(self, tokens: torch.Tensor) -> Iterable[tuple[Key, torch.Tensor]]:
        """Gram matrices of the text: those put aside, which they are first where others are."""
        net, grams, batch = self.session.supernet(), self.session.grams, self.session.micro_batch
        if grams is not None and grams.kept and not grams.has(tokens):
            stream = grams.begin(net.model, tokens, in_order=True)
            with phase("statistics for refits", refittable(net)) as steps:
                for key, gram in steps.over(gram_matrices(net.model, net.blocks, tokens, batch, stream)):
                    grams.put(key, gram)
        stored = None if grams is None else grams.of(tokens, net.ordering)
        return stored or gram_matrices(net.model, net.blocks, tokens, batch)


def refittable(net: Supernet) -> int:
    """Sub-blocks with a Gram matrix."""
    return sum(not sub.stacked for _, sub in present(net.blocks))
