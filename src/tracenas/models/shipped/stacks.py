"""Encoder–decoder models in the T5 manner whose blocks differ in width, or lack attention, cross-attention or FFN.

In a checkpoint this stands behind `heterogeneous.py` in one file, so it imports nothing but torch, transformers and
that. Each `T5Block` is made again from `config.tracenas_layers`, per stack {block: {attribute: value, …}}:

    num_heads, num_cross_heads, d_ff   widths of self-attention, cross-attention and FFN
    bias_heads                         the columns of the stack's table of position biases that its heads read
    skip                               sub-blocks that are replaced by stubs, their norms by identities

The table itself, [buckets, heads of the original model], stands in the stack's first block, as in T5.
"""

import copy
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import nn

from tracenas.models.shipped.heterogeneous import (
    _Bypassed,
    _LayeredConfig,
    _Rebuilt,
    _replace,
    _stock_classes,
    class_names,
)

_SELF, _CROSS = "layer.0.SelfAttention", "layer.1.EncDecAttention"
# Sub-block → its place in a block's `layer`, and what it is called there.
_PARTS = {"attention": (0, "SelfAttention"), "cross_attention": (1, "EncDecAttention"), "mlp": (-1, "DenseReluDense")}


class OwnHeads:
    """Mixed into T5's attention: the position bias that blocks hand on is the whole table's, each takes its own part.

    Cross-attention has no bias: it ignores the zeros that an earlier block made for its own number of heads.
    """

    bias_heads: tuple[int, ...]
    layer_idx: int

    def forward(
        self,
        hidden_states: torch.Tensor,
        mask: Any = None,
        key_value_states: torch.Tensor | None = None,
        position_bias: torch.Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> Any:
        """As in transformers; the second value is the bias of all heads [1, heads, T, keys] (cross-attention: None)."""
        given = {**kwargs, "mask": mask, "past_key_values": past_key_values}
        if key_value_states is not None:
            out, _, weights = super().forward(hidden_states, key_value_states=key_value_states, **given)  # type: ignore[misc]
            return out, None, weights
        if position_bias is None:
            position_bias = self._whole_bias(hidden_states, past_key_values)
        own = position_bias
        if self.bias_heads != tuple(range(position_bias.shape[1])):
            own = position_bias.index_select(1, torch.tensor(self.bias_heads, device=position_bias.device))
        out, _, weights = super().forward(hidden_states, position_bias=own, **given)  # type: ignore[misc]
        return out, position_bias, weights

    def _whole_bias(self, hidden_states: torch.Tensor, cache: Any) -> torch.Tensor:
        """The bias of every column of the table, [1, heads of the original model, T, keys]."""
        seen, queries = 0, hidden_states.shape[1]
        keys = queries
        if cache is not None:
            seen = cache.get_seq_length(self.layer_idx)
            keys = cache.get_mask_sizes(queries, self.layer_idx)[0]
        bias: torch.Tensor = self.compute_bias(  # type: ignore[attr-defined]
            queries, keys, device=hidden_states.device, past_seen_tokens=seen
        )
        return bias


def own_heads(attention: Any, table: nn.Module | None, heads: Sequence[int]) -> None:
    """Make an attention module read the columns `heads` of a table of position biases (None: it has no bias).

    Its parameters stay what they are: the table is a child of the stack's first attention only.
    """
    if not isinstance(attention, OwnHeads):
        stock: Any = type(attention)
        attention.__class__ = _with_own_heads(stock)
    if table is not None and attention._modules.get("relative_attention_bias") is not table:
        attention.__dict__["relative_attention_bias"] = table
    attention.bias_heads = tuple(int(i) for i in heads)


@cache
def _with_own_heads(stock: Any) -> Any:
    return type(f"{stock.__name__}OwnHeads", (OwnHeads, stock), {"__module__": __name__})


class _NoHeads(_Bypassed):
    """Stands where self- or cross-attention was removed: contributes zeros.

    In the first block it still holds the stack's table. In place of self-attention it puts zeros into the cache,
    whose first layer tells the model how many tokens it has seen.
    """

    def __init__(self, removed: nn.Module, layer: int) -> None:
        super().__init__(removed, layer)
        if (table := removed._modules.get("relative_attention_bias")) is not None:
            self.relative_attention_bias = table

    def forward(
        self,
        hidden_states: torch.Tensor,
        *args: Any,
        key_value_states: torch.Tensor | None = None,
        position_bias: torch.Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Zeros like `hidden_states` [B, T, D]; the position bias goes on."""
        zeros = torch.zeros_like(hidden_states)
        if key_value_states is not None:
            return zeros, None, None
        if past_key_values is not None:
            cache = getattr(past_key_values, "self_attention_cache", past_key_values)
            heads, width = self._cached_shape(cache)
            nothing = hidden_states.new_zeros(hidden_states.shape[0], heads, hidden_states.shape[1], width)
            cache.update(nothing, nothing, self.layer_idx)
        return zeros, position_bias, None


class _RebuiltStacks(_Rebuilt):
    """Mixed into the family's model: the blocks of both stacks are made again, each from its own entry."""

    def _rebuild(self) -> None:
        config: Any = self.config  # type: ignore[attr-defined]
        for name in ("encoder", "decoder"):
            _rebuild_stack(getattr(self, name), (config.tracenas_layers or {}).get(name, {}))


def _rebuild_stack(stack: Any, layers: dict[str, dict[str, Any]]) -> None:
    for index, stock in enumerate(stack.block):
        own = layers.get(str(index), {})
        block = _block(type(stock), stack.config, index, own)
        stack.block[index] = block
        for name in own.get("skip", ()):
            place, part = _PARTS[name]
            layer = block.layer[place]
            removed = layer.get_submodule(part)
            setattr(layer, part, (_Bypassed if name == "mlp" else _NoHeads)(removed, index))
            layer.layer_norm = nn.Identity()
    table = stack.block[0].get_submodule(_SELF).relative_attention_bias
    for index, block in enumerate(stack.block):
        own = layers.get(str(index), {})
        skip = own.get("skip", ())
        if "attention" not in skip:
            heads = own.get("num_heads", stack.config.num_heads)
            own_heads(block.get_submodule(_SELF), table, own.get("bias_heads", range(heads)))
        if stack.is_decoder and "cross_attention" not in skip:
            own_heads(block.get_submodule(_CROSS), None, ())


def _block(kind: Any, common: Any, index: int, own: dict[str, Any]) -> Any:
    """A block of the given widths; in the first one the whole table of position biases."""

    def make(heads: int) -> Any:
        config = copy.copy(common)
        config.num_heads, config.d_ff = heads, own.get("d_ff", common.d_ff)
        config.__dict__["_root"] = common
        return kind(config, has_relative_attention_bias=index == 0, layer_idx=index)

    block = make(own.get("num_heads", common.num_heads))
    if common.is_decoder:
        cross = make(own.get("num_cross_heads", common.num_heads)).get_submodule(_CROSS)
        _replace(block, _CROSS, cross)
    if index == 0:
        buckets = common.relative_attention_num_buckets
        block.get_submodule(_SELF).relative_attention_bias = nn.Embedding(buckets, common.num_heads)
    return block


class _StackedConfig(_LayeredConfig):
    """A decoder's cache has a layer for each of its blocks, also where the encoder has fewer."""

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> Any:
        """The decoder's configuration has the decoder's depth."""
        found = super().get_text_config(decoder=decoder, encoder=encoder)  # type: ignore[misc]
        if decoder and not encoder and found is not self:
            found.num_layers = found.num_decoder_layers
        return found


def build_stacks(base_model_type: str) -> tuple[Any, Any, Any]:
    """`(configuration, model, model with a head)` classes over an encoder–decoder family of transformers."""
    stock, base, generating = _stock_classes(base_model_type)
    names = class_names(base_model_type)
    module = {"__module__": __name__}
    said = {"model_type": f"tracenas_{base_model_type}", "base_model_type": base_model_type, "tracenas_layers": None}
    annotations = {"base_model_type": str, "tracenas_layers": dict | None}
    config = type(names[0], (_StackedConfig, stock), {**module, "__annotations__": annotations, **said})
    model = type(names[1], (_RebuiltStacks, base), {**module, "config_class": config, "_stock": base})
    head = type(names[2], (_RebuiltStacks, generating), {**module, "config_class": config, "_stock": generating})
    for built in (config, model, head):
        globals()[built.__name__] = built  # where pickle looks for them
    return config, model, head
