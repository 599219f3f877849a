"""Causal language models whose layers differ in width, or lack attention or MLP.

What the configuration has beside the family's own keys:

    base_model_type   the family (`llama`); `model_type` is `tracenas_llama`
    per_layer_config  {layer: {attribute: value, …, "skip": ["attention" | "mlp" | …]}}; where no attribute says
                      how wide a matrix is, "tracenas_shapes": {its path in the layer: [rows, columns]}
    tracenas_bypass   {sub-block: {"module": path in the layer, "norms": [paths]}}, read for what `skip` names
    tracenas_stubs    {"attention": [layers]} whose one head is all zeros, in place of removed attention; for readers
"""

import copy
from functools import cache
from typing import Any

from torch import nn

from tracenas.models.shipped.layers import (
    Bypassed,
    LayeredConfig,
    Rebuilt,
    class_named,
    heterogeneous_classes,
    replace_module,
)


class RebuiltDecoder(Rebuilt):
    """Mixed into the family's model: each layer is made again from `config.per_layer_config[i]`."""

    def rebuild(self) -> None:
        """Put the heterogeneous layers in place of the stock ones."""
        config: Any = self.config  # type: ignore[attr-defined]
        layers: Any = self.base_model.layers  # type: ignore[attr-defined]
        for index, stock in enumerate(layers):
            layers[index] = _layer(type(stock), config, index)


def _layer(kind: Any, config: Any, index: int) -> Any:
    local = config.per_layer_config[index]
    if local is config:
        local = copy.copy(config)
    local.__dict__["_root"] = config
    layer = kind(local, index)
    for path, (rows, columns) in (local.tracenas_shapes or {}).items():
        linear = nn.Linear(columns, rows, bias=layer.get_submodule(path).bias is not None)
        replace_module(layer, path, linear)
    for name in getattr(local, "skip", ()):
        paths = config.tracenas_bypass[name]
        replace_module(layer, paths["module"], Bypassed(layer.get_submodule(paths["module"]), index))
        for norm in paths["norms"]:
            replace_module(layer, norm, nn.Identity())
    return layer


@cache
def build_decoder_only(base_model_type: str) -> tuple[Any, Any, Any]:
    """`(configuration, model, causal language model)` classes over a family whose layers stand in `layers`."""
    keys = dict.fromkeys(("tracenas_bypass", "tracenas_shapes", "tracenas_stubs"), dict)
    return heterogeneous_classes(base_model_type, LayeredConfig, RebuiltDecoder, keys, globals())


def __getattr__(name: str) -> Any:
    return class_named(name, __name__, build_decoder_only)
