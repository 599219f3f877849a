"""The config.json of a pruned model: the family's own where its keys can say it, else a heterogeneous one."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tracenas.errors import UserError
from tracenas.families import Block, Family, within
from tracenas.families.description import IntArray
from tracenas.models.checkpoints.stacked_configuration import stacked_candidates
from tracenas.models.checkpoints.written_config import heterogeneous_keys, stock_keys
from tracenas.models.shipped.checkpoint_code import language_model
from tracenas.models.shipped.heterogeneous import build
from tracenas.space.architecture import Layer

__all__ = [
    "ATTENTION",
    "PrunedConfig",
    "built_shapes",
    "empty_model",
    "layered_config",
    "named_tensors",
    "new_places",
    "pruned_config",
    "says_stock",
]

ATTENTION = "attention"
"""The sub-block in whose place a stub can be written."""
Shapes = Mapping[str, tuple[int, ...]]

# Keys that only heterogeneous checkpoints have.
_OURS = (
    "allow_global_per_layer_attribute_access",
    "auto_map",
    "base_model_type",
    "per_layer_config",
    "tracenas_bypass",
    "tracenas_layers",
    "tracenas_shapes",
    "tracenas_stubs",
)


@dataclass(frozen=True)
class PrunedConfig:
    """What will be written as config.json, and what the model that it builds has beside the cut tensors."""

    config: dict[str, Any]
    stock: bool
    """Whether the family's own keys say it all."""
    zeros: dict[str, tuple[int, ...]]
    """Names and shapes of the tensors of attention stubs: all zeros."""


def pruned_config(
    base: Mapping[str, Any],
    family: Family,
    blocks: Sequence[Block],
    layers: Sequence[Layer],
    shapes: Shapes,
    *,
    kept: Mapping[tuple[int, str], IntArray | None],
    stub_attention: bool = False,
) -> PrunedConfig:
    """The configuration of the pruned model: the family's own where it can say it, else a heterogeneous one.

    Args:
        base: the pruned model's own configuration.
        layers: counts per block of the base.
        kept: ids of the kept units.
        shapes: of the cut tensors; a model built from the result has exactly these, and the stubs'.
        stub_attention: where attention is removed, say one query head and one KV head instead of `skip`. With all
            its tensors zero, its norms included, such a head adds exactly zero to the residual stream.

    Raises:
        UserError: if no block remains (of a stack), or the family has no stubs.
        RuntimeError: if the family's description and transformers' model disagree.
    """
    remaining = [i for i, layer in enumerate(layers) if not layer.skip]
    if not remaining:
        raise UserError("every block is skipped; at least one must stay")
    if stub_attention and family.stub_overrides(base, remaining[0]) is None:
        raise UserError(f"stub-removed-attention: family '{family.model_type}' has no stub for removed attention")
    stubs = _stubs(blocks, layers) if stub_attention else {}
    stock, ours = _both(base, family, blocks, layers, kept, stubs)
    if stock is not None and (zeros := _beside(built_shapes(stock), shapes, stubs)) is not None:
        return PrunedConfig(stock, True, zeros)
    built = built_shapes(ours)
    if (zeros := _beside(built, shapes, stubs)) is None:
        difference = sorted(set((built or {}).items()) ^ set(shapes.items()))[:2]
        raise RuntimeError(f"{ours['architectures'][0]} does not build what was cut: {difference}")
    return PrunedConfig(ours, False, zeros)


def says_stock(
    base: Mapping[str, Any],
    family: Family,
    blocks: Sequence[Block],
    layers: Sequence[Layer],
    shapes: Shapes,
    kept: Mapping[tuple[int, str], IntArray | None],
) -> bool:
    """Whether `pruned_config` would say all of it in the family's own keys; its arguments."""
    stock, _ = _both(base, family, blocks, layers, kept, {})
    return stock is not None and _beside(built_shapes(stock), shapes, {}) is not None


def layered_config(
    base: Mapping[str, Any],
    family: Family,
    blocks: Sequence[Block],
    layers: Sequence[Layer],
    *,
    stub_attention: bool = False,
) -> dict[str, Any]:
    """The heterogeneous configuration of a decoder-only model, also where the family's own keys could say it all.

    No model is built to compare with it; its arguments are those of `pruned_config`.
    """
    return _both(base, family, blocks, layers, {}, _stubs(blocks, layers) if stub_attention else {})[1]


def _both(
    base: Mapping[str, Any],
    family: Family,
    blocks: Sequence[Block],
    layers: Sequence[Layer],
    kept: Mapping[tuple[int, str], IntArray | None],
    stubs: Mapping[int, tuple[str, ...]],
) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """`(stock configuration or None, heterogeneous one)`."""
    common = {key: value for key, value in base.items() if key not in _OURS}
    if family.stacks:
        return stacked_candidates(base, common, family, blocks, layers, kept)
    return _candidates(base, common, family, blocks, layers, stubs)


def _candidates(
    base: Mapping[str, Any],
    common: Mapping[str, Any],
    family: Family,
    blocks: Sequence[Block],
    layers: Sequence[Layer],
    stubs: Mapping[int, tuple[str, ...]],
) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """`(stock configuration or None, heterogeneous one)` of a decoder-only model.

    Args:
        common: `base` without the keys that only heterogeneous checkpoints have.
    """
    remaining = [i for i, layer in enumerate(layers) if not layer.skip]
    overrides = [family.layer_overrides(base, i, blocks[i], layers[i]) for i in remaining]
    for place in stubs:
        overrides[place] = _stubbed(base, family, remaining[place], overrides[place])
    common = {**_without_blocks(common, remaining, len(blocks)), **family.renumbered(base, remaining)}
    agreed = _agreed(overrides)
    stock = None if agreed is None else _stock_config(common, family.model_type, agreed)
    ours = {
        **_with_head_dim(common),
        **heterogeneous_keys(family.model_type),
        "allow_global_per_layer_attribute_access": True,
        "per_layer_config": {str(new): o for new, o in enumerate(overrides)},
        "tracenas_bypass": {
            s.spec.name: {"module": s.module, "norms": list(s.norms)} for i in remaining for s in blocks[i].sub_blocks
        },
    }
    if stubs:
        ours["tracenas_stubs"] = {ATTENTION: sorted(stubs)}
    return stock, ours


def new_places(blocks: Sequence[Block], layers: Sequence[Layer]) -> list[str | None]:
    """Per block of the base: its path in the pruned model, None where it is skipped."""
    remaining: dict[str, int] = {}
    places: list[str | None] = []
    for block, layer in zip(blocks, layers, strict=True):
        stack = block.path.rpartition(".")[0]
        places.append(None if layer.skip else f"{stack}.{remaining.get(stack, 0)}")
        remaining[stack] = remaining.get(stack, 0) + (not layer.skip)
    return places


# --- stubs ----------------------------------------------------------------------------------------


def _stubs(blocks: Sequence[Block], layers: Sequence[Layer]) -> dict[int, tuple[str, ...]]:
    """Remaining block → paths of the modules that a stub brings back: attention and its norms."""
    stubs: dict[int, tuple[str, ...]] = {}
    present = [(b, la, p) for b, la, p in zip(blocks, layers, new_places(blocks, layers), strict=True) if p]
    for new, (block, layer, place) in enumerate(present):
        for sub, kept in within(block, layer):
            if sub.spec.name == ATTENTION and not kept:
                stubs[new] = tuple(f"{place}.{path}." for path in (sub.module, *sub.norms))
    return stubs


def _stubbed(base: Mapping[str, Any], family: Family, index: int, override: Mapping[str, Any]) -> dict[str, Any]:
    """A block's overrides with one head of attention instead of none."""
    skip = [name for name in override["skip"] if name != ATTENTION]
    one = family.stub_overrides(base, index)
    assert one is not None
    stubbed = {key: value for key, value in override.items() if key != "skip"} | one
    return {**stubbed, "skip": skip} if skip else stubbed


def _beside(
    built: Shapes | None, cut: Shapes, stubs: Mapping[int, tuple[str, ...]]
) -> dict[str, tuple[int, ...]] | None:
    """What a model has beside the cut tensors, all of it in stubs; None if it does not fit them."""
    if built is None or any(built.get(name) != shape for name, shape in cut.items()):
        return None
    paths = tuple(path for prefixes in stubs.values() for path in prefixes)
    beside = {name: shape for name, shape in built.items() if name not in cut}
    return beside if all(name.startswith(paths) for name in beside) else None


def _agreed(overrides: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What all blocks say together; None if they differ, or if only their own configuration can say it."""
    agreed: dict[str, Any] = {}
    for override in overrides:
        if {"skip", "tracenas_shapes"} & set(override) or any(
            agreed.setdefault(k, v) != v for k, v in override.items()
        ):
            return None
    return agreed


def _without_blocks(common: Mapping[str, Any], remaining: Sequence[int], count: int) -> dict[str, Any]:
    """Their number, and lists that have an entry per block cut to the remaining ones."""
    config = dict(common)
    for key, value in common.items():
        if isinstance(value, list) and len(value) == count and "layer" in key:
            config[key] = [value[i] for i in remaining]
    if config.get("max_window_layers") is not None:  # blocks before it attend to everything
        config["max_window_layers"] = sum(i < config["max_window_layers"] for i in remaining)
    config["num_hidden_layers"] = len(remaining)
    return config


def _with_head_dim(config: Mapping[str, Any]) -> dict[str, Any]:
    if config.get("head_dim") is None and config.get("num_attention_heads"):
        return {**config, "head_dim": config["hidden_size"] // config["num_attention_heads"]}
    return dict(config)


def _stock_config(common: Mapping[str, Any], model_type: str, override: Mapping[str, Any]) -> dict[str, Any]:
    heads = override.get("num_attention_heads")
    changed = heads is not None and heads != common.get("num_attention_heads")
    stock = _with_head_dim(common) if changed else common
    return {**stock, **override, **stock_keys(model_type)}


def built_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]] | None:
    """Shapes of the tensors (tied ones once) of the model a configuration builds; None if it is refused."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        model = empty_model(config)
    except (StrictDataclassError, ValueError):
        return None
    return {name: tuple(tensor.shape) for name, tensor in named_tensors(model)}


def empty_model(config: Mapping[str, Any]) -> Any:
    """The model a configuration builds, its weights without data (on the device `meta`).

    Raises:
        StrictDataclassError, ValueError: if transformers refuses the configuration.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if base := config.get("base_model_type"):
        config_class, _, causal = build(base)
    else:
        config_class = CONFIG_MAPPING[config["model_type"]]
        causal = language_model(config["model_type"])
    built = config_class.from_dict(copy.deepcopy(dict(config)))
    with torch.device("meta"):
        model = causal(built)
    model.tie_weights()
    if built.is_encoder_decoder and config.get("tie_word_embeddings") is False:
        head = model.get_output_embeddings()  # which transformers ties, until it reads a file that holds it
        head.weight = torch.nn.Parameter(torch.empty_like(head.weight))
    return model


def named_tensors(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters once each, then persistent buffers."""
    yield from model.named_parameters(remove_duplicate=True)
    state = model.state_dict()
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in state)
