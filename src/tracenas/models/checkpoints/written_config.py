"""config.json of what is made of a base: the base's own file where nothing changed, in words of transformers 4 and 5.

Version 5 reads both versions' keys; version 4 takes its defaults for what it does not find, without a word (a rotary
base of 10,000 for `rope_parameters`). Libraries that serve a family may read the one or the other.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tracenas.families import Family
from tracenas.models.checkpoints.published import published
from tracenas.models.shipped.checkpoint_code import auto_map, class_names, language_model

__all__ = [
    "for_both_versions",
    "heterogeneous_keys",
    "is_stock",
    "stock_keys",
    "write_config",
    "written_config",
]

_NOT_TAKEN_OVER = ("auto_map", "quantization_config")
"""Code that is not copied, and how weights were stored that are stored plainly now."""
_NOT_COMPARED = ("_name_or_path", "dtype", "partial_rotary_factor", "rope_scaling", "transformers_version")
"""Nothing of the model, or what `rope_parameters` repeat."""


def written_config(
    config: Mapping[str, Any], family: Family, disk: Mapping[str, Any], base: Mapping[str, Any]
) -> dict[str, Any]:
    """A stock configuration with what only its base's file says, and with both versions' keys.

    Args:
        config: the new model's.
        disk: the base's config.json; empty if there is none.
        base: the base's configuration as transformers says it.
    """
    return for_both_versions(_as_on_disk(disk, base, config), family)


def _as_on_disk(disk: Mapping[str, Any], before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    before, after = _without_alias(before), _without_alias(after)
    spoken = {*before, *after} - {"transformers_version"}
    merged = {**after, **{k: v for k, v in disk.items() if k not in spoken and k not in _NOT_TAKEN_OVER}}
    try:  # an older name of something that changed would be read instead of it
        return merged if _read(merged) == _read(after) else after
    except ValueError:
        return after


def for_both_versions(config: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """A stock configuration with transformers 4's keys beside version 5's; those that it has stay."""
    both = {**family.version_4(config), **config}
    if _read(both) != _read(config):  # something that version 4 has no words for
        both = dict(config)
    if dtype := config.get("dtype", config.get("torch_dtype")):
        both |= {"dtype": dtype, "torch_dtype": dtype}
    return both


def is_stock(config: Mapping[str, Any]) -> bool:
    """Whether transformers builds the model without code of ours."""
    return "base_model_type" not in config


def stock_keys(model_type: str) -> dict[str, Any]:
    """What names the class of a stock model."""
    return {"model_type": model_type, "architectures": [language_model(model_type).__name__]}


def heterogeneous_keys(base_model_type: str) -> dict[str, Any]:
    """What names the classes of a heterogeneous model over a family."""
    return {
        "model_type": f"tracenas_{base_model_type}",
        "base_model_type": base_model_type,
        "architectures": [class_names(base_model_type)[2]],
        "auto_map": auto_map(base_model_type),
    }


def write_config(directory: Path, config: Mapping[str, Any]) -> None:
    """Write config.json; a base is named as people elsewhere know it, not by a path of this machine."""
    if isinstance(name := config.get("_name_or_path"), str):
        config = {**config, "_name_or_path": published(name)}
    from transformers import PreTrainedConfig

    text = json.dumps(PreTrainedConfig()._encode_special_floats(dict(config)), indent=2, sort_keys=True) + "\n"
    (directory / "config.json").write_text(text, encoding="utf-8")


def _without_alias(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration of transformers 5, some of which repeat `rope_parameters` under version 4's name."""
    return {key: value for key, value in config.items() if key != "rope_scaling" or "rope_parameters" not in config}


def _read(config: Mapping[str, Any]) -> dict[str, Any]:
    """What transformers makes of a stock configuration.

    Raises:
        ValueError: if it is refused.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config_class: Any = CONFIG_MAPPING[config["model_type"]]
    try:
        read: dict[str, Any] = config_class.from_dict(json.loads(json.dumps(config))).to_dict()
    except StrictDataclassError as error:
        raise ValueError(str(error)) from error
    if isinstance(rotary := read.get("rope_parameters"), dict):
        rotary.pop("type", None)  # an older name of `rope_type`
    return {key: value for key, value in read.items() if key not in _NOT_COMPARED}
