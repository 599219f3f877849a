"""Pruning without search: a method's saliency and allocation on a session's model and calibration."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from tracenas.config import CalibrationConfig, OneShotSettings
from tracenas.errors import UserError
from tracenas.pipeline.session import Session, options_of
from tracenas.registry import did_you_mean
from tracenas.rundir import read_json, write_json
from tracenas.saliency.methods import METHODS, Method
from tracenas.space.architecture import Architecture
from tracenas.space.search_space import SearchSpace

if TYPE_CHECKING:
    import torch

    from tracenas.models.checkpoints.loading import LoadedModel
    from tracenas.models.surgery.ordering import Ordering
    from tracenas.saliency.allocation import Allocated

__all__ = [
    "ANCHOR",
    "ARCHITECTURE",
    "OneShot",
    "anchor_of",
    "as_method",
    "method_of",
    "on_tokens",
    "one_shot",
    "one_shot_architecture",
]

ANCHOR = "anchor.json"
"""In a run directory: the one-shot architecture that the initial population is built around."""

ARCHITECTURE = "architecture.json"
"""Beside a one-shot checkpoint: its architecture, as `--arch` takes it."""

C = TypeVar("C", bound=OneShotSettings)


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


def method_of(name: str) -> Method:
    """A method by name.

    Raises:
        UserError: for an unknown one, with a suggestion.
    """
    if name not in METHODS:
        raise UserError(f"unknown method '{name}': {did_you_mean(name, sorted(METHODS))}")
    return METHODS[name]


def as_method(config: C) -> C:
    """The settings with what the method says, where the user said nothing else; no torch is needed.

    Raises:
        UserError: for settings that do not go together, unknown names, and what is missing.
    """
    from tracenas.saliency import SALIENCIES
    from tracenas.saliency.allocation import ALLOCATIONS

    assert config.method is not None
    method, given = method_of(config.method), config.model_fields_set
    if config.params is None:
        raise UserError("'params' is required with method: a share such as 50%, or a size such as 2.7B")
    if config.data is None:
        raise UserError("'data' is required with method: calibration text or tokens")
    saliency = config.saliency if "saliency" in given else method.saliency
    allocation = config.allocation or method.allocation
    for registry, name in ((SALIENCIES, saliency), (ALLOCATIONS, allocation)):
        if name not in registry:
            registry.get(name)
    if config.gamma is not None and allocation != "adaptive":
        raise UserError(f"gamma goes with allocation adaptive, not {allocation}")
    update: dict[str, Any] = {"saliency": saliency, "allocation": allocation}
    if "kv_groups" not in given:
        update["kv_groups"] = method.kv_groups
    if allocation == "depth" and config.min_depth is None:
        update["min_depth"] = 1
    return config.model_copy(update=update)


def one_shot(session: Session, config: OneShotSettings) -> OneShot:
    """The architecture of a session whose units are ranked by the method's saliency (`as_method`).

    Raises:
        UserError: if the allocation cannot meet the budget, or γ is infeasible.
    """
    return _one_shot(config, session.loaded, session.space, session.ordering, session.importance)


def on_tokens(
    config: OneShotSettings, loaded: "LoadedModel", space: SearchSpace, tokens: "torch.Tensor", micro_batch: int
) -> "tuple[Ordering, OneShot]":
    """The unit order and the architecture that a method (`as_method`) makes of one calibration set."""
    ordering, importance = _ranked(config, loaded, config.saliency, tokens, micro_batch)
    return ordering, _one_shot(config, loaded, space, ordering, importance)


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
    chosen = method_of(method)
    ordering, importance = session.ordering, session.importance
    if session.config.saliency != chosen.saliency:
        if session.net is not None and not session.net.restored:
            raise ValueError(f"method {method}: saliency is measured on the base, and this is a super-network by now")
        ordering, importance = _ranked(
            session.config, session.loaded, chosen.saliency, session.tokens, session.micro_batch
        )
    name = allocation or chosen.allocation
    return _allocated(session.config, session.loaded, session.space, ordering, importance, name, gamma).architecture


def anchor_of(session: Session, method: str) -> Architecture:
    """The method's architecture in a search's space: the run's own where it is stored, else made and stored."""
    assert session.run is not None
    path = session.run / ANCHOR
    if path.is_file():
        return session.space.validate(Architecture.from_json(read_json(path), where=str(path)), where=str(path))
    found = one_shot_architecture(session, method)
    write_json(path, {"architecture": found.to_json()})
    return found


def _one_shot(
    config: OneShotSettings,
    loaded: "LoadedModel",
    space: SearchSpace,
    ordering: "Ordering",
    importance: Mapping[tuple[int, str], float],
) -> OneShot:
    assert config.allocation is not None
    found = _allocated(config, loaded, space, ordering, importance, config.allocation, config.gamma)
    facts = {"method": config.method, "saliency": config.saliency, "allocation": config.allocation}
    return OneShot(found.architecture, {**facts, **found.facts})


def _ranked(
    config: CalibrationConfig, loaded: "LoadedModel", saliency: str, tokens: "torch.Tensor", micro_batch: int
) -> "tuple[Ordering, dict[tuple[int, str], float]]":
    """Unit order and importance by a saliency."""
    from tracenas.models.surgery.ordering import Ordering
    from tracenas.saliency import SALIENCIES

    blocks = loaded.blocks(options_of(config))
    per_unit, importance = SALIENCIES.get(saliency)(loaded.model, blocks, tokens.to(loaded.device), micro_batch)
    return Ordering.from_saliency(blocks, per_unit), importance


def _allocated(
    config: CalibrationConfig,
    loaded: "LoadedModel",
    space: SearchSpace,
    ordering: "Ordering",
    importance: Mapping[tuple[int, str], float],
    allocation: str,
    gamma: float | None,
) -> "Allocated":
    from tracenas.saliency.allocation import ALLOCATIONS, Ranked

    for key, value in ordering.saliency.items():
        if not np.isfinite(value).all():
            raise UserError(f"block {key[0]}, {key[1]}: saliencies are not finite; try dtype=fp32")
    blocks = loaded.blocks(options_of(config))
    groups = {(i, s.spec.name): s.groups for i, block in enumerate(blocks) for s in block.sub_blocks}
    return ALLOCATIONS.get(allocation)(Ranked(space, ordering.saliency, groups, importance), gamma)
