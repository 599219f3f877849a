"""Encoder–decoder models in the T5 manner whose blocks differ in width, or lack attention, cross-attention or FFN.

Each `T5Block` is made again from `config.tracenas_layers`, per stack {block: {attribute: value, …}}:

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

from tracenas.models.shipped.layers import (
    Bypassed,
    LayeredConfig,
    Rebuilt,
    class_named,
    heterogeneous_classes,
    replace_module,
)

_SELF, _CROSS = "layer.0.SelfAttention", "layer.1.EncDecAttention"
# Sub-block → its place in a block's `layer`, and what it is called there.
_PARTS = {"attention": (0, "SelfAttention"), "cross_attention": (1, "EncDecAttention"), "mlp": (-1, "DenseReluDense")}


class SelectedHeads:
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
        arguments = {**kwargs, "mask": mask, "past_key_values": past_key_values}
        if key_value_states is not None:
            out, _, weights = super().forward(hidden_states, key_value_states=key_value_states, **arguments)  # type: ignore[misc]
            return out, None, weights
        if position_bias is None:
            position_bias = self._table_bias(hidden_states, past_key_values)
        bias = position_bias
        if self.bias_heads != tuple(range(position_bias.shape[1])):
            bias = position_bias.index_select(1, torch.tensor(self.bias_heads, device=position_bias.device))
        out, _, weights = super().forward(hidden_states, position_bias=bias, **arguments)  # type: ignore[misc]
        return out, position_bias, weights

    def _table_bias(self, hidden_states: torch.Tensor, cache: Any) -> torch.Tensor:
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


def select_heads(attention: Any, table: nn.Module | None, heads: Sequence[int]) -> None:
    """Make an attention module read the columns `heads` of a table of position biases (None: it has no bias).

    Its parameters stay what they are: the table is a child of the stack's first attention only.
    """
    if not isinstance(attention, SelectedHeads):
        stock: Any = type(attention)
        attention.__class__ = _with_selected_heads(stock)
    if table is not None and attention._modules.get("relative_attention_bias") is not table:
        attention.__dict__["relative_attention_bias"] = table
    attention.bias_heads = tuple(int(i) for i in heads)


@cache
def _with_selected_heads(stock: Any) -> Any:
    return type(f"{stock.__name__}SelectedHeads", (SelectedHeads, stock), {"__module__": __name__})


class _NoHeads(Bypassed):
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
            self.cache_zeros(getattr(past_key_values, "self_attention_cache", past_key_values), hidden_states)
        return zeros, position_bias, None


class RebuiltStacks(Rebuilt):
    """Mixed into the family's model: the blocks of both stacks are made again, each from its own entry."""

    def rebuild(self) -> None:
        """Put the heterogeneous blocks in place of the stock ones."""
        config: Any = self.config  # type: ignore[attr-defined]
        for name in ("encoder", "decoder"):
            _rebuild_stack(getattr(self, name), (config.tracenas_layers or {}).get(name, {}))


def _rebuild_stack(stack: Any, layers: dict[str, dict[str, Any]]) -> None:
    for index, stock in enumerate(stack.block):
        entry = layers.get(str(index), {})
        block = _block(type(stock), stack.config, index, entry)
        stack.block[index] = block
        for name in entry.get("skip", ()):
            place, part = _PARTS[name]
            layer = block.layer[place]
            removed = layer.get_submodule(part)
            setattr(layer, part, (Bypassed if name == "mlp" else _NoHeads)(removed, index))
            layer.layer_norm = nn.Identity()
    table = stack.block[0].get_submodule(_SELF).relative_attention_bias
    for index, block in enumerate(stack.block):
        entry = layers.get(str(index), {})
        skip = entry.get("skip", ())
        if "attention" not in skip:
            heads = entry.get("num_heads", stack.config.num_heads)
            select_heads(block.get_submodule(_SELF), table, entry.get("bias_heads", range(heads)))
        if stack.is_decoder and "cross_attention" not in skip:
            select_heads(block.get_submodule(_CROSS), None, ())


def _block(kind: Any, common: Any, index: int, entry: dict[str, Any]) -> Any:
    """A block of the given widths; in the first one the whole table of position biases."""

    def make(heads: int) -> Any:
        config = copy.copy(common)
        config.num_heads, config.d_ff = heads, entry.get("d_ff", common.d_ff)
        config.__dict__["_root"] = common
        return kind(config, has_relative_attention_bias=index == 0, layer_idx=index)

    block = make(entry.get("num_heads", common.num_heads))
    if common.is_decoder:
        cross = make(entry.get("num_cross_heads", common.num_heads)).get_submodule(_CROSS)
        replace_module(block, _CROSS, cross)
    if index == 0:
        buckets = common.relative_attention_num_buckets
        block.get_submodule(_SELF).relative_attention_bias = nn.Embedding(buckets, common.num_heads)
    return block


class StackedConfig(LayeredConfig):
    """A decoder's cache has a layer for each of its blocks, also where the encoder has fewer."""

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> Any:
        """The decoder's configuration has the decoder's depth."""
        config = super().get_text_config(decoder=decoder, encoder=encoder)  # type: ignore[misc]
        if decoder and not encoder and config is not self:
            config.num_layers = config.num_decoder_layers
        return config


@cache
def build_encoder_decoder(base_model_type: str) -> tuple[Any, Any, Any]:
    """`(configuration, model, model with a head)` classes over an encoder–decoder family of transformers."""
    return heterogeneous_classes(base_model_type, StackedConfig, RebuiltStacks, {"tracenas_layers": dict}, globals())


def __getattr__(name: str) -> Any:
    return class_named(name, __name__, build_encoder_decoder)
