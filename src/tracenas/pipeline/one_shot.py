"""Pruning without search: a method's saliency and allocation on a session's model and calibration."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tracenas.config import OneShotSettings
from tracenas.models.checkpoints.loading import LoadedModel
from tracenas.models.surgery.ordering import Ordering
from tracenas.pipeline.method import find_method
from tracenas.pipeline.rises import ranked_units, rises
from tracenas.pipeline.session import Session
from tracenas.pipeline.target import PruningTarget
from tracenas.reporting.progress import phase
from tracenas.rundir import read_json, write_json
from tracenas.saliency import PREDICTED_RISES, SALIENCIES
from tracenas.saliency.allocation import ALLOCATIONS, Allocated
from tracenas.space.architecture import Architecture

__all__ = [
    "ANCHOR",
    "ARCHITECTURE",
    "OneShot",
    "allocate_budget",
    "one_shot",
    "one_shot_architecture",
    "rank_units",
    "run_anchor",
    "stored_anchor",
]

ANCHOR = "anchor.json"
"""In a run directory: the one-shot architecture that the initial population is built around."""

ARCHITECTURE = "architecture.json"
"""Beside a one-shot checkpoint: its architecture, as `--arch` takes it."""

Importance = Mapping[tuple[int, str], float]


@dataclass(frozen=True)
class OneShot:
    """What a method made of a budget.

    Args:
        architecture: within the budget.
        facts: method, saliency, allocation and what the allocation says of itself (γ).
    """

    architecture: Architecture
    facts: Mapping[str, Any]

    def card(self) -> dict[str, str]:
        """Lines of the model card."""
        named = {key: value for key, value in self.facts.items() if key in ("method", "saliency", "allocation")}
        rest = {key.replace("_", " "): _text(value) for key, value in self.facts.items() if key not in named}
        return {**{f"one-shot {key}": str(value) for key, value in named.items()}, **rest}


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def one_shot(session: Session, config: OneShotSettings) -> OneShot:
    """The architecture of a session whose units are ranked by the method's saliency (`resolve_method`).

    Raises:
        UserError: if the allocation cannot meet the budget, or γ is infeasible.
    """
    assert config.allocation is not None
    ranked = ranked_units(session.target, session.ordering.saliency, session.importance)
    with phase("share out the budget"):
        allocated = ALLOCATIONS.get(config.allocation)(ranked, config.gamma)
    facts = {"method": config.method, "saliency": config.saliency, "allocation": config.allocation}
    predicted = rises(ranked, allocated.architecture) if config.saliency in PREDICTED_RISES else {}
    return OneShot(allocated.architecture, {**facts, **allocated.facts, **predicted})


def one_shot_architecture(
    session: Session, method: str, *, gamma: float | None = None, allocation: str | None = None
) -> Architecture:
    """The architecture that a method gives this session's model, space and calibration, whatever they were made for.

    The units are the session's (its `kv_groups`, its quanta). Its saliency is used if it is the method's, else
    measured here; the model's units must be in the base's order then (no super-network yet).

    Args:
        session: with a budget in its space.
        method: a name of `METHODS`.
        gamma: of allocation `adaptive`; None for the default.
        allocation: other than the method's.

    Raises:
        UserError: see `one_shot`; for an unknown method.
    """
    chosen = find_method(method)
    ordering, importance = session.ordering, session.importance
    if session.saliency != chosen.saliency:
        if session.net is not None and not session.net.restored:
            raise ValueError(f"method {method}: saliency is measured on the base, and this is a super-network by now")
        ordering, importance = rank_units(
            session.target, session.loaded, chosen.saliency, session.tokens, session.micro_batch
        )
    return allocate_budget(session.target, ordering, importance, allocation or chosen.allocation, gamma).architecture


def run_anchor(session: Session, method: str) -> Architecture:
    """The method's architecture in a search's space: the run's own where it is stored, else made and stored."""
    assert session.run is not None
    path = session.run / ANCHOR
    if path.is_file():
        return stored_anchor(session.target, session.run)
    architecture = one_shot_architecture(session, method)
    write_json(path, {"architecture": architecture.to_json()})
    return architecture


def stored_anchor(target: PruningTarget, run: Path) -> Architecture:
    """The one-shot architecture that a run keeps."""
    where = str(run / ANCHOR)
    return target.space.validate(Architecture.from_json(read_json(run / ANCHOR), where=where), where=where)


def rank_units(
    target: PruningTarget, loaded: LoadedModel, saliency: str, tokens: torch.Tensor, micro_batch: int
) -> tuple[Ordering, Importance]:
    """Unit order and importance by a saliency."""
    measure = SALIENCIES.get(saliency)
    with phase(f"saliency {saliency}"):
        per_unit, importance = measure(loaded.model, target.blocks, tokens.to(loaded.device), micro_batch)
    return Ordering.from_saliency(target.blocks, per_unit), importance


def allocate_budget(
    target: PruningTarget, ordering: Ordering, importance: Importance, allocation: str, gamma: float | None
) -> Allocated:
    """The budget of the target's space, shared out over its sub-blocks.

    Raises:
        UserError: if the saliencies are not finite, or as `one_shot`.
    """
    return ALLOCATIONS.get(allocation)(ranked_units(target, ordering.saliency, importance), gamma)
