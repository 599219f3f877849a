"""Rotary positions in config.json: transformers 5's `rope_parameters` in the keys of version 4."""

from collections.abc import Mapping
from typing import Any

__all__ = ["rotary_keys"]


def rotary_keys(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_theta`, `rope_scaling` and `partial_rotary_factor`; `rope_local_base_freq` of sliding layers.

    Args:
        parameters: `rope_parameters`, of all layers alike or by type of layer; empty where nothing is rotated.
    """
    if isinstance(full := parameters.get("full_attention"), Mapping):
        local = parameters.get("sliding_attention") or {}
        return {**rotary_keys(full), "rope_local_base_freq": local.get("rope_theta", 10_000.0)}
    if "rope_theta" not in parameters:
        return {}
    apart = ("rope_theta", "partial_rotary_factor")
    scaling = {key: value for key, value in parameters.items() if key not in apart}
    scaled = scaling.get("rope_type", "default") != "default"
    return {**{k: parameters[k] for k in apart if k in parameters}, "rope_scaling": scaling if scaled else None}
