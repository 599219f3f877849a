"""What the heterogeneous classes of decoder-only and of encoder–decoder families have in common.

Each layer of the family's own model is made again with its own widths; where its entry in the configuration names a
sub-block in `skip`, the sub-block is replaced by a stub that adds nothing to the residual stream, and its norms by
identities.
"""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tracenas.models.shipped.checkpoint_code import (
    CODE_FILE,
    auto_map,
    class_names,
    family_named,
    shipped_code,
    stock_classes,
)

# A layer's own configuration asks the model's for these: they are switched on the model after it was built.
_SHARED = ("_attn_implementation_internal", "_experts_implementation_internal")


class LayeredConfig:
    """Reads its attributes plainly: the global value of what varies by layer is the base model's."""

    def __getattribute__(self, key: str) -> Any:
        if key in _SHARED:
            root = object.__getattribute__(self, "__dict__").get("_root")
            if root is not None:
                return getattr(root, key)
        renamed = object.__getattribute__(self, "attribute_map")
        return object.__getattribute__(self, renamed.get(key, key))


class Bypassed(nn.Module):
    """Stands where a sub-block was removed: contributes zeros and has no parameters.

    In place of attention it puts zeros [B, 1, T, 1] into the layer's cache, because the cache of one layer
    (the first, or the first of its kind) tells the model how many tokens it has seen.

    Args:
        removed: the module it replaces; taken for attention if its forward has an `attention_mask`.
        layer: index of the layer, its place in the cache.
    """

    def __init__(self, removed: nn.Module, layer: int) -> None:
        super().__init__()
        self.layer_idx = layer
        self.attends = "attention_mask" in inspect.signature(removed.forward).parameters

    def forward(
        self,
        hidden_states: torch.Tensor,
        *args: Any,
        past_key_values: Any = None,
        layer_past: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Zeros like `hidden_states` [B, T, D]; `(zeros, None)` in place of attention."""
        zeros = torch.zeros_like(hidden_states)
        if not self.attends:
            return zeros
        cache = past_key_values if past_key_values is not None else layer_past
        if cache is not None:
            self.cache_zeros(cache, hidden_states)
        return zeros, None

    def cache_zeros(self, cache: Any, hidden_states: torch.Tensor) -> None:
        """Put zeros for the tokens of `hidden_states` [B, T, D] into the layer's cache.

        They have its heads and head width if it is laid out already (a static one), else 1 and 1.
        """
        layers = getattr(cache, "layers", ())
        keys = getattr(layers[self.layer_idx], "keys", None) if self.layer_idx < len(layers) else None
        heads, width = (keys.shape[1], keys.shape[3]) if keys is not None and keys.dim() == 4 else (1, 1)
        zeros = hidden_states.new_zeros(hidden_states.shape[0], heads, hidden_states.shape[1], width)
        cache.update(zeros, zeros, self.layer_idx)


class Rebuilt:
    """Mixed into the family's model: its layers are made again, each from its own configuration."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        self.rebuild()
        self.post_init()  # type: ignore[attr-defined]

    def rebuild(self) -> None:
        """Put the heterogeneous layers in place of the stock ones."""
        raise NotImplementedError

    def _sdpa_can_dispatch(self, is_init_check: bool = False) -> bool:
        """Not where scores are soft-capped: torch's attention leaves the cap out, which transformers 5.17 overlooks."""
        if getattr(self.config, "attn_logit_softcapping", None):  # type: ignore[attr-defined]
            raise ValueError("soft-capped attention scores need attn_implementation='eager'")
        return bool(super()._sdpa_can_dispatch(is_init_check))  # type: ignore[misc]

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return bool(cls._stock._can_set_attn_implementation())  # type: ignore[attr-defined]

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return bool(cls._stock._can_set_experts_implementation())  # type: ignore[attr-defined]

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As in transformers, and the code that is needed to load it again."""
        config: Any = self.config  # type: ignore[attr-defined]
        config.auto_map = auto_map(config.base_model_type)
        super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]
        if kwargs.get("is_main_process", True):
            code = shipped_code(config.base_model_type)
            (Path(save_directory) / CODE_FILE).write_text(code, encoding="utf-8")


def replace_module(layer: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module at `path` below a layer."""
    parent, _, name = path.rpartition(".")
    setattr(layer.get_submodule(parent), name, module)


def heterogeneous_classes(
    base_model_type: str, config_mixin: type, model_mixin: type, keys: Mapping[str, type], namespace: dict[str, Any]
) -> tuple[Any, Any, Any]:
    """`(configuration, model, language model)` classes over a family of transformers.

    Args:
        base_model_type: the family's `model_type` (`llama`).
        config_mixin: precedes the family's configuration among the bases, `model_mixin` its models.
        keys: what the configuration has beside the family's own, and of which type; None unless config.json has it.
        namespace: of the module that the classes belong to, where pickle looks for them.

    Raises:
        KeyError: if transformers has no such family.
    """
    stock, *models = stock_classes(base_model_type)
    config_name, *model_names = class_names(base_model_type)
    module = {"__module__": namespace["__name__"]}
    values = {"model_type": f"tracenas_{base_model_type}", "base_model_type": base_model_type, **dict.fromkeys(keys)}
    annotations = {"base_model_type": str, **{key: kind | None for key, kind in keys.items()}}
    config = type(config_name, (config_mixin, stock), {**module, "__annotations__": annotations, **values})
    model, head = (
        type(name, (model_mixin, base), {**module, "config_class": config, "_stock": base})
        for name, base in zip(model_names, models, strict=True)
    )
    namespace.update({built.__name__: built for built in (config, model, head)})
    return config, model, head


def class_named(name: str, module: str, build: Callable[[str], tuple[Any, Any, Any]]) -> Any:
    """A class of `build` by its name: unpickled in another process, it is asked for before that has built it.

    Raises:
        AttributeError: if `build` makes no class of this name.
    """
    if (family := family_named(name)) and name in class_names(family):
        return build(family)[class_names(family).index(name)]
    raise AttributeError(f"module {module!r} has no attribute {name!r}")
