"""What a search did, generation by generation (the quantities of TraceNAS Fig. 4); no drawing here.

Shape suffixes: P candidates of a population, L layers.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tracenas.reporting.data.run import JournalCandidate, RunData
from tracenas.space.architecture import Architecture

__all__ = ["GenerationFigures", "generations", "layer_names", "retention"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class GenerationFigures:
    """State of the search after one generation.

    `elites` are the best seen so far, the best first; `evaluated` are this generation's new candidates,
    failed ones included. `width[key]` [L] is the elites' mean retention ratio where they keep the layer
    (NaN where none does, or it has no such unit), `skipped[key]` [L] the share of the elites without it.
    `variance[key]` is the retention ratio's variance over the population (the elites before, and the new
    candidates), averaged over layers; NaN for fewer than two.
    """

    number: int
    evaluated: tuple[JournalCandidate, ...]
    elites: tuple[JournalCandidate, ...]
    width: Mapping[str, Floats]
    skipped: Mapping[str, Floats]
    variance: Mapping[str, float]

    @property
    def elite_scores(self) -> list[float]:
        """Scores of the elites, the best first."""
        return [c.score for c in self.elites if c.score is not None]


def generations(run: RunData) -> list[GenerationFigures]:
    """The search's history, one entry per generation that has a candidate in the journal."""
    history: list[GenerationFigures] = []
    elites: tuple[JournalCandidate, ...] = ()
    by_number: dict[int, list[JournalCandidate]] = {}
    for candidate in run.candidates:
        by_number.setdefault(candidate.generation, []).append(candidate)
    for number, evaluated in sorted(by_number.items()):
        population = [*elites, *(c for c in evaluated if c.score is not None)]
        elites = tuple(heapq.nlargest(run.elites, population, key=lambda c: c.score or 0.0))
        kept = {key: _ratios(elites, key, units) for key, units in run.base_units.items()}
        spread = {key: _variance(_ratios(population, key, units)) for key, units in run.base_units.items()}
        width = {key: _mean_width(ratios_PL) for key, ratios_PL in kept.items()}
        skipped = {key: _skipped(ratios_PL) for key, ratios_PL in kept.items()}
        history.append(GenerationFigures(number, tuple(evaluated), elites, width, skipped, spread))
    return history


def retention(architecture: Architecture, key: str, units: Sequence[int]) -> Floats:
    """Kept units / units per layer [L]; NaN where the base has no such unit, 0 where it is skipped."""
    kept_L = np.array([dict(layer.kept).get(key, 0) for layer in architecture.layers], dtype=np.float64)
    units_L = np.array(units, dtype=np.float64)
    ratios_L = np.full_like(kept_L, np.nan)
    np.divide(kept_L, units_L, out=ratios_L, where=units_L > 0)
    return ratios_L


def layer_names(architecture: Architecture) -> list[str]:
    """`0`, `1`, … within each stack; with the stack's first letter (`E0`, `D0`) where there are several."""
    seen: dict[str, int] = {}
    names = []
    for layer in architecture.layers:
        index = seen.get(layer.stack, 0)
        seen[layer.stack] = index + 1
        names.append(f"{layer.stack[:1].upper()}{index}")
    return names


def _ratios(candidates: Sequence[JournalCandidate], key: str, units: Sequence[int]) -> Floats:
    rows = [retention(c.architecture, key, units) for c in candidates]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(units))


def _mean_width(ratios_PL: Floats) -> Floats:
    active_PL = ratios_PL > 0
    number_L = active_PL.sum(axis=0)
    mean_L = np.full(ratios_PL.shape[1], np.nan)
    np.divide(np.where(active_PL, ratios_PL, 0).sum(axis=0), number_L, out=mean_L, where=number_L > 0)
    return mean_L


def _skipped(ratios_PL: Floats) -> Floats:
    return np.asarray((ratios_PL == 0).sum(axis=0) / max(len(ratios_PL), 1), dtype=np.float64)


def _variance(ratios_PL: Floats) -> float:
    if len(ratios_PL) < 2:
        return float("nan")
    present_L = ~np.isnan(ratios_PL[0])
    return float(ratios_PL[:, present_L].var(axis=0).mean())
