"""Model families: one file per `model_type`, saying where the units live. No torch is imported here."""

from collections.abc import Mapping
from typing import Any

from tracenas.errors import UserError
from tracenas.families.description import Block, Family, Options, Projection, Segment, SubBlock, kept_in_order
from tracenas.families.iteration import Key, active, parameter_parts, placed, present, within
from tracenas.registry import Registry, did_you_mean

__all__ = [
    "FAMILIES",
    "Block",
    "Family",
    "Key",
    "Options",
    "Projection",
    "Segment",
    "SubBlock",
    "active",
    "config_family",
    "kept_in_order",
    "parameter_parts",
    "placed",
    "present",
    "within",
]

_NAMES = "gemma gemma2 gemma3_text gpt_neox llama mistral mixtral olmo2 phi3 qwen2 qwen3 qwen3_moe t5"
FAMILIES: Registry[Family] = Registry("family", {name: f"tracenas.families.{name}:FAMILY" for name in _NAMES.split()})


def config_family(config: Mapping[str, Any]) -> Family:
    """The family of a `config.json`; our own pruned checkpoints name theirs in `base_model_type`.

    Raises:
        UserError: for a family that is not supported.
    """
    name = config.get("base_model_type") or config.get("model_type")
    if not isinstance(name, str):
        raise UserError("the model's config.json names no model_type")
    if name not in FAMILIES:
        raise UserError(f"model family '{name}' is not supported; {did_you_mean(name, FAMILIES.names())}")
    return FAMILIES.get(name)
