"""Causal language models whose layers differ in width, or lack attention or MLP.

This file is copied into every heterogeneous checkpoint as `modeling_tracenas.py`, followed by one line that
builds the classes of its family, so it imports nothing but torch and transformers. Each decoder layer of the
family's own model is made again from `config.per_layer_config[i]`; where that names a sub-block in `skip`,
the sub-block is replaced by a stub that adds nothing to the residual stream, and its norms by identities.

What the configuration has beside the family's own keys:

    base_model_type   the family (`llama`); `model_type` is `tracenas_llama`
    per_layer_config  {layer: {attribute: value, …, "skip": ["attention" | "mlp" | …]}}; where no attribute says
                      how wide a matrix is, "tracenas_shapes": {its path in the layer: [rows, columns]}
    tracenas_bypass   {sub-block: {"module": path in the layer, "norms": [paths]}}, read for what `skip` names
    tracenas_stubs    {"attention": [layers]} whose one head is all zeros, in place of removed attention; for readers
"""

import ast
import copy
import inspect
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_MAPPING,
)

__all__ = [
    "CODE_FILE",
    "auto_map",
    "build",
    "class_names",
    "is_encoder_decoder",
    "language_model",
    "register",
    "shipped_code",
]

if not hasattr(getattr(transformers, "PreTrainedConfig", None), "per_layer_config"):
    raise ImportError("this model's layers differ from each other: it needs transformers 5.17 or newer")

CODE_FILE = "modeling_tracenas.py"
# A layer's own configuration asks the model's for these: they are switched on the model after it was built.
_SHARED = ("_attn_implementation_internal", "_experts_implementation_internal")


class _LayeredConfig:
    """Reads its attributes plainly: the global value of what varies by layer is the base model's."""

    def __getattribute__(self, key: str) -> Any:
        if key in _SHARED:
            root = object.__getattribute__(self, "__dict__").get("_root")
            if root is not None:
                return getattr(root, key)
        renamed = object.__getattribute__(self, "attribute_map")
        return object.__getattribute__(self, renamed.get(key, key))


class _Bypassed(nn.Module):
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
            heads, width = self._cached_shape(cache)
            nothing = hidden_states.new_zeros(hidden_states.shape[0], heads, hidden_states.shape[1], width)
            cache.update(nothing, nothing, self.layer_idx)
        return zeros, None

    def _cached_shape(self, cache: Any) -> tuple[int, int]:
        """Heads and head width of the layer's cache if it is laid out already (a static one), else 1, 1."""
        layers = getattr(cache, "layers", ())
        keys = getattr(layers[self.layer_idx], "keys", None) if self.layer_idx < len(layers) else None
        return (keys.shape[1], keys.shape[3]) if keys is not None and keys.dim() == 4 else (1, 1)


class _Rebuilt:
    """Mixed into the family's model: its layers are made again, each from its own configuration."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        self._rebuild()
        self.post_init()  # type: ignore[attr-defined]

    def _rebuild(self) -> None:
        _rebuild_layers(self)

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


def _rebuild_layers(model: Any) -> None:
    config, layers = model.config, model.base_model.layers
    for index, stock in enumerate(layers):
        own = config.per_layer_config[index]
        if own is config:
            own = copy.copy(config)
        own.__dict__["_root"] = config
        layer = type(stock)(own, index)
        for path, (rows, columns) in (own.tracenas_shapes or {}).items():
            linear = nn.Linear(columns, rows, bias=layer.get_submodule(path).bias is not None)
            _replace(layer, path, linear)
        for name in getattr(own, "skip", ()):
            where = config.tracenas_bypass[name]
            _replace(layer, where["module"], _Bypassed(layer.get_submodule(where["module"]), index))
            for norm in where["norms"]:
                _replace(layer, norm, nn.Identity())
        layers[index] = layer


def _replace(layer: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(layer.get_submodule(parent), name, module)


@cache
def build(base_model_type: str) -> tuple[Any, Any, Any]:
    """`(configuration, model, causal language model)` classes over a family of transformers.

    Args:
        base_model_type: the family's `model_type` (`llama`), whose decoder layers stand in `layers`.

    Raises:
        KeyError: if transformers has no such family.
    """
    if is_encoder_decoder(base_model_type):
        built: tuple[Any, Any, Any] = import_module("tracenas.models.shipped.stacks").build_stacks(base_model_type)
        return built
    stock, base, causal = _stock_classes(base_model_type)
    names = class_names(base_model_type)
    module = {"__module__": __name__}
    optional = ("tracenas_bypass", "tracenas_shapes", "tracenas_stubs")
    config = type(
        names[0],
        (_LayeredConfig, stock),
        {
            **module,
            "__annotations__": {"base_model_type": str, **dict.fromkeys(optional, dict | None)},
            "model_type": f"tracenas_{base_model_type}",
            "base_model_type": base_model_type,
            **dict.fromkeys(optional),
        },
    )
    model = type(names[1], (_Rebuilt, base), {**module, "config_class": config, "_stock": base})
    head = type(names[2], (_Rebuilt, causal), {**module, "config_class": config, "_stock": causal})
    for made in (config, model, head):
        globals()[made.__name__] = made  # where pickle looks for them
    return config, model, head


def class_names(base_model_type: str) -> tuple[str, str, str]:
    """Names of the classes of `build`: the family's own after `TraceNAS`."""
    config, model, head = ("TraceNAS" + c.__name__ for c in _stock_classes(base_model_type))
    return config, model, head


def _stock_classes(base_model_type: str) -> tuple[Any, Any, Any]:
    config = CONFIG_MAPPING[base_model_type]
    return config, MODEL_MAPPING[config], language_model(base_model_type)


def is_encoder_decoder(model_type: str) -> bool:
    """Whether transformers has this family's language model as an encoder–decoder only."""
    config = CONFIG_MAPPING[model_type]
    return config not in MODEL_FOR_CAUSAL_LM_MAPPING and config in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING


def language_model(model_type: str) -> Any:
    """transformers' class of a family's model with a language-model head.

    Raises:
        KeyError: if there is none.
    """
    config = CONFIG_MAPPING[model_type]
    if is_encoder_decoder(model_type):
        return MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING[config]
    return MODEL_FOR_CAUSAL_LM_MAPPING[config]


def auto_map(base_model_type: str) -> dict[str, str]:
    """The `auto_map` of config.json: which class of the shipped file each Auto class is to use."""
    names = class_names(base_model_type)
    last = "AutoModelForSeq2SeqLM" if is_encoder_decoder(base_model_type) else "AutoModelForCausalLM"
    autos = ("AutoConfig", "AutoModel", last)
    return {auto: f"{CODE_FILE.removesuffix('.py')}.{name}" for auto, name in zip(autos, names, strict=True)}


def shipped_code(base_model_type: str) -> str:
    """The text of `modeling_tracenas.py`: this file (and `stacks.py`), and a line that builds the family's classes."""
    here = Path(__file__)
    source = here.read_text(encoding="utf-8")
    if here.name == CODE_FILE:
        return source
    how = "build"
    if is_encoder_decoder(base_model_type):
        source += "\n\n" + _without_package_imports(here.with_name("stacks.py").read_text(encoding="utf-8"))
        how = "build_stacks"
    return f'{source}\n\n{", ".join(class_names(base_model_type))} = {how}("{base_model_type}")\n'


def _without_package_imports(source: str) -> str:
    """A module's text without its imports from tracenas: what they name stands in the same file."""
    lines = source.splitlines(keepends=True)
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tracenas."):
            lines[node.lineno - 1 : node.end_lineno] = [""] * ((node.end_lineno or node.lineno) - node.lineno + 1)
    return "".join(lines)


def __getattr__(name: str) -> Any:
    """A class of `build` by its name: unpickled in another process, it is asked for before that has built it."""
    known = import_module("tracenas.families").FAMILIES if name.startswith("TraceNAS") else ()
    for family in known:
        if name in class_names(family):
            return build(family)[class_names(family).index(name)]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def register(*base_model_types: str) -> None:
    """Make the Auto classes know heterogeneous models of these families (none named: all of tracenas).

    Afterwards such checkpoints load in this process without `trust_remote_code`.
    """
    for name in base_model_types or tuple(import_module("tracenas.families").FAMILIES):
        config, model, head = build(name)
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
        auto: Any = AutoModelForSeq2SeqLM if is_encoder_decoder(name) else AutoModelForCausalLM
        auto.register(config, head, exist_ok=True)
