"""Decoder blocks in the Llama manner: separate q, k, v, o and a gated MLP, pre-norm, rotary positions."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tracenas.families.description import (
    Attribute,
    Block,
    Costs,
    Options,
    Projection,
    Segment,
    SubBlock,
    sub_block,
)
from tracenas.space.architecture import Layer

__all__ = ["Biases", "LlamaLike", "layer_config"]


def layer_config(config: Mapping[str, Any], index: int) -> dict[str, Any]:
    """The configuration of block `index`: the global values with its `per_layer_config` entry over them."""
    overrides = config.get("per_layer_config") or {}
    own: Mapping[str, Any] = next((v for k, v in overrides.items() if int(k) == index), {})
    return {**config, **own}


@dataclass(frozen=True)
class Biases:
    """Which projections have a bias."""

    qkv: bool = False
    o: bool = False
    mlp: bool = False


@dataclass(frozen=True)
class LlamaLike:
    """A family whose blocks are `model.layers[i]` with `self_attn` and `mlp` as in Llama.

    Args:
        model_type: of transformers.
        qk_norm: whether q and k pass an RMSNorm of `head_dim` per head (Qwen3).
        attention_norms, mlp_norms: norms of a block that belong to each sub-block.
    """

    model_type: str
    qk_norm: bool = False
    attention_norms: tuple[str, ...] = ("input_layernorm",)
    mlp_norms: tuple[str, ...] = ("post_attention_layernorm",)
    layers_path: str = field(default="model.layers")

    def biases(self, config: Mapping[str, Any]) -> Biases:
        """Which projections have biases under this configuration."""
        attention = bool(config.get("attention_bias", False))
        return Biases(qkv=attention, o=attention, mlp=bool(config.get("mlp_bias", False)))

    def blocks(self, config: Mapping[str, Any], options: Options) -> tuple[Block, ...]:
        """Every block, from `config.json`."""
        return tuple(
            Block(
                f"{self.layers_path}.{i}",
                (
                    self._attention(layer_config(config, i), options),
                    self._mlp(layer_config(config, i), options),
                ),
            )
            for i in range(int(config["num_hidden_layers"]))
        )

    def outside(self, config: Mapping[str, Any]) -> int:
        """Embeddings, head (once if tied) and final norm."""
        embedding = int(config["vocab_size"]) * int(config["hidden_size"])
        tied = bool(config.get("tie_word_embeddings", False))
        return embedding * (1 if tied else 2) + int(config["hidden_size"])

    def head_weights(self, config: Mapping[str, Any]) -> int:
        """Entries of the language-model head's matrix."""
        return int(config["vocab_size"]) * int(config["hidden_size"])

    def layer_overrides(self, config: Mapping[str, Any], index: int, block: Block, layer: Layer) -> dict[str, Any]:
        """Head counts and MLP width of a cut block, and which of its sub-blocks are skipped."""
        local = layer_config(config, index)
        heads, kv_heads = int(local["num_attention_heads"]), int(local["num_key_value_heads"])
        kept = dict(layer.kept)
        if kept.get("kv_heads"):
            heads, kv_heads = kept["kv_heads"] * (heads // kv_heads), kept["kv_heads"]
        elif kept.get("heads"):
            kv_heads = kept["heads"] if kv_heads == heads else kv_heads
            heads = kept["heads"]
        overrides: dict[str, Any] = {"num_attention_heads": heads, "num_key_value_heads": kv_heads}
        overrides["intermediate_size"] = kept["channels"] or int(local["intermediate_size"])
        names = [s.spec.name for s, (_, count) in zip(block.sub_blocks, layer.kept, strict=True) if count == 0]
        return {**overrides, "skip": names} if names else overrides

    def _attention(self, config: Mapping[str, Any], options: Options) -> SubBlock:
        hidden = int(config["hidden_size"])
        heads = int(config["num_attention_heads"])
        kv_heads = int(config.get("num_key_value_heads") or heads)
        dim = int(config.get("head_dim") or hidden // heads)
        per_group = heads // kv_heads
        grouped = kv_heads < heads
        bias = self.biases(config)
        if options.kv_groups and grouped:
            unit, units, q_rows, quantum, groups = "kv_heads", kv_heads, per_group * dim, 1, 1
        else:
            unit, units, q_rows, quantum, groups = (
                "heads",
                heads,
                dim,
                kv_heads if grouped else 1,
                kv_heads if grouped else 1,
            )
        kv_units = () if grouped and not options.kv_groups else (Segment(dim),)
        at = "self_attn."
        if unit == "heads" and options.head_quantum > 1:
            quantum = math.lcm(quantum, options.head_quantum)
        projections = (
            Projection(at + "q_proj", heads * dim, hidden, (Segment(q_rows),), bias=bias.qkv, source="attention_in"),
            Projection(at + "k_proj", kv_heads * dim, hidden, kv_units, bias=bias.qkv, source="attention_in"),
            Projection(at + "v_proj", kv_heads * dim, hidden, kv_units, bias=bias.qkv, source="attention_in"),
            Projection(
                at + "o_proj",
                hidden,
                heads * dim,
                (),
                (Segment(q_rows),),
                bias=bias.o,
                source="attention_out",
            ),
        )
        cache = 2 * kv_heads * dim
        return sub_block(
            "attention",
            unit,
            units,
            projections,
            module="self_attn",
            output=at + "o_proj",
            quantum=quantum,
            norms=self.attention_norms,
            groups=groups,
            attributes=(Attribute(at + "num_key_value_groups", kv_heads),) if groups > 1 else (),
            outputs=2,
            costs=Costs(
                norm_parameters=hidden * len(self.attention_norms) + (2 * dim if self.qk_norm else 0),
                score_width=q_rows,
                cache_per_unit=2 * dim if kv_units else 0,
                fixed_cache=0 if kv_units else cache,
                heads_per_unit=q_rows // dim,
            ),
            present="attention" not in config.get("skip", ()),
        )

    def _mlp(self, config: Mapping[str, Any], options: Options) -> SubBlock:
        hidden, width = int(config["hidden_size"]), int(config["intermediate_size"])
        bias = self.biases(config).mlp
        channel = (Segment(1),)
        projections = (
            Projection("mlp.gate_proj", width, hidden, channel, bias=bias, source="mlp_in"),
            Projection("mlp.up_proj", width, hidden, channel, bias=bias, source="mlp_in"),
            Projection("mlp.down_proj", hidden, width, (), channel, bias=bias, source="mlp_out"),
        )
        return sub_block(
            "mlp",
            "channels",
            width,
            projections,
            module="mlp",
            output="mlp.down_proj",
            quantum=options.channel_quantum,
            norms=self.mlp_norms,
            costs=Costs(norm_parameters=hidden * len(self.mlp_norms)),
            present="mlp" not in config.get("skip", ()),
        )
