"""The config.json of a pruned model: the family's own where its keys can say it, else a heterogeneous one."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from tracenas.errors import UserError
from tracenas.families import Block, Family
from tracenas.models import heterogeneous
from tracenas.space.architecture import Layer

__all__ = ["built_shapes", "pruned_config", "tensors_of"]

# Keys that only heterogeneous checkpoints have.
_OURS = (
    "allow_global_per_layer_attribute_access",
    "auto_map",
    "base_model_type",
    "per_layer_config",
    "tracenas_bypass",
    "tracenas_shapes",
)


def pruned_config(
    base: Mapping[str, Any],
    family: Family,
    blocks: Sequence[Block],
    layers: Sequence[Layer],
    shapes: Mapping[str, tuple[int, ...]],
) -> tuple[dict[str, Any], bool]:
    """`(config.json of the pruned model, whether it is a stock one)`.

    Args:
        base: the pruned model's own configuration.
        layers: counts per block of the base.
        shapes: of the tensors that will be written; a model built from the result has exactly these.

    Raises:
        UserError: if no block remains.
        RuntimeError: if the family's description and transformers' model disagree.
    """
    remaining = [i for i, layer in enumerate(layers) if not layer.skip]
    if not remaining:
        raise UserError("every block is skipped; at least one must stay")
    overrides = [family.layer_overrides(base, i, blocks[i], layers[i]) for i in remaining]
    common = _without_blocks({k: v for k, v in base.items() if k not in _OURS}, remaining, len(blocks))
    common |= family.renumbered(base, remaining)
    if (agreed := _agreed(overrides)) is not None:
        stock = _stock_config(common, family.model_type, agreed)
        if built_shapes(stock) == shapes:
            return stock, True
    config, _, causal = heterogeneous.class_names(family.model_type)
    ours = {
        **_with_head_dim(common),
        "model_type": f"tracenas_{family.model_type}",
        "base_model_type": family.model_type,
        "architectures": [causal],
        "auto_map": heterogeneous.auto_map(family.model_type),
        "allow_global_per_layer_attribute_access": True,
        "per_layer_config": {str(new): o for new, o in enumerate(overrides)},
        "tracenas_bypass": {
            s.spec.name: {"module": s.module, "norms": list(s.norms)} for i in remaining for s in blocks[i].sub_blocks
        },
    }
    if (built := built_shapes(ours)) != shapes:
        difference = sorted(set((built or {}).items()) ^ set(shapes.items()))[:2]
        raise RuntimeError(f"{config} does not build what was cut: {difference}")
    return ours, False


def _agreed(overrides: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What all blocks say together; None if they differ, or if only their own configuration can say it."""
    agreed: dict[str, Any] = {}
    for own in overrides:
        if {"skip", "tracenas_shapes"} & set(own) or any(agreed.setdefault(k, v) != v for k, v in own.items()):
            return None
    return agreed


def _without_blocks(config: dict[str, Any], remaining: list[int], count: int) -> dict[str, Any]:
    """Their number, and lists that have an entry per block cut to the remaining ones."""
    for key, value in config.items():
        if isinstance(value, list) and len(value) == count and "layer" in key:
            config[key] = [value[i] for i in remaining]
    if config.get("max_window_layers") is not None:  # blocks before it attend to everything
        config["max_window_layers"] = sum(i < config["max_window_layers"] for i in remaining)
    config["num_hidden_layers"] = len(remaining)
    return config


def _with_head_dim(config: dict[str, Any]) -> dict[str, Any]:
    if config.get("head_dim") is None and config.get("num_attention_heads"):
        return {**config, "head_dim": config["hidden_size"] // config["num_attention_heads"]}
    return config


def _stock_config(common: dict[str, Any], model_type: str, override: Mapping[str, Any]) -> dict[str, Any]:
    heads = override.get("num_attention_heads")
    changed = heads is not None and heads != common.get("num_attention_heads")
    causal = heterogeneous.class_names(model_type)[2].removeprefix("TraceNAS")
    stock = _with_head_dim(common) if changed else common
    return {**stock, **override, "model_type": model_type, "architectures": [causal]}


def built_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]] | None:
    """Shapes of the tensors (tied ones once) of the model a configuration builds; None if it is refused."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    if base := config.get("base_model_type"):
        config_class, _, causal = heterogeneous.build(base)
    else:
        config_class = CONFIG_MAPPING[config["model_type"]]
        causal = MODEL_FOR_CAUSAL_LM_MAPPING[config_class]
    try:
        built = config_class.from_dict(dict(config))
    except (StrictDataclassError, ValueError):
        return None
    with torch.device("meta"):
        model = causal(built)
    model.tie_weights()
    return {name: tuple(tensor.shape) for name, tensor in tensors_of(model)}


def tensors_of(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters once each, then persistent buffers."""
    yield from model.named_parameters(remove_duplicate=True)
    state = model.state_dict()
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in state)
