"""What a one-shot method's settings come to, before torch is imported."""

from typing import Any, TypeVar

from tracenas.config import OneShotSettings
from tracenas.data.sources import is_tokens
from tracenas.errors import UserError
from tracenas.registry import did_you_mean
from tracenas.saliency import PREDICTED_RISES, SALIENCIES
from tracenas.saliency.allocation import ALLOCATIONS
from tracenas.saliency.methods import METHODS, Method

__all__ = ["find_method", "resolve_method"]

C = TypeVar("C", bound=OneShotSettings)
MEASURED_SAMPLES = 8
"""Sequences where the calibration only measures losses: widths are costed, and units ranked, on the text of refits."""


def find_method(name: str) -> Method:
    """A method by name.

    Raises:
        UserError: for an unknown one, with a suggestion.
    """
    if name not in METHODS:
        raise UserError(f"unknown method '{name}': {did_you_mean(name, sorted(METHODS))}")
    return METHODS[name]


def resolve_method(config: C) -> C:
    """The settings with what the method says, where the user said nothing else.

    Raises:
        UserError: for settings that do not go together, unknown names, and what is missing.
    """
    assert config.method is not None
    method, explicit = find_method(config.method), config.model_fields_set
    if not config.budgets:
        raise UserError("'params' is required with method, or budget: a share such as 50%, or a size such as 2.7B")
    if config.data is None:
        raise UserError("'data' is required with method: calibration text or tokens")
    saliency = config.saliency if "saliency" in explicit else method.saliency
    allocation = config.allocation or method.allocation
    SALIENCIES.check(saliency)
    ALLOCATIONS.check(allocation)
    if allocation == "solver" and saliency not in PREDICTED_RISES:
        raise UserError(f"allocation solver goes with saliency {', '.join(sorted(PREDICTED_RISES))}, not {saliency}")
    if config.gamma is not None and allocation != "adaptive":
        raise UserError(f"gamma goes with allocation adaptive, not {allocation}")
    update: dict[str, Any] = {"saliency": saliency, "allocation": allocation}
    if saliency in PREDICTED_RISES and config.samples is None and not is_tokens(config.data):
        update["samples"] = MEASURED_SAMPLES
    if "kv_groups" not in explicit:
        update["kv_groups"] = method.kv_groups
    if "channel_quantum" not in explicit and method.channel_quantum is not None:
        update["channel_quantum"] = method.channel_quantum
    if allocation == "depth" and config.min_depth is None:
        update["min_depth"] = 1
    return config.model_copy(update=update)
