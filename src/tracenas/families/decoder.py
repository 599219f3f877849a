"""Decoder blocks in the Llama manner: attention with separate q, k, v, o, and a gated MLP.

A family that differs says so in the fields of `LlamaLike`, or replaces one of its methods.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tracenas.families.counted import counted
from tracenas.families.description import (
    MOST_HEADS,
    WIDEST,
    Attribute,
    Block,
    Family,
    Options,
    Projection,
    Segment,
    SubBlock,
    block_count,
)
from tracenas.families.iteration import within
from tracenas.space.architecture import Layer
from tracenas.space.sub_block import SubBlockSpec

__all__ = ["Biases", "Heads", "LlamaLike", "layer_config"]


def layer_config(config: Mapping[str, Any], index: int) -> dict[str, Any]:
    """The configuration of block `index`: the global values with its `per_layer_config` entry over them."""
    overrides = config.get("per_layer_config") or {}
    local: Mapping[str, Any] = next((v for k, v in overrides.items() if int(k) == index), {})
    return {**config, **local}


@dataclass(frozen=True)
class Biases:
    """Which projections have a bias."""

    qkv: bool = False
    o: bool = False
    mlp: bool = False


@dataclass(frozen=True)
class Heads:
    """The heads of one attention module, and which of their rows and columns go with a unit (decision 1).

    Args:
        hidden: width of the residual stream.
        count: query heads.
        kv: key and value heads.
        dim: width of a head.
        kv_groups: whether KV groups are the units where queries are grouped.
    """

    hidden: int
    count: int
    kv: int
    dim: int
    kv_groups: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.kv <= self.count <= MOST_HEADS or self.count % self.kv or not 0 < self.dim <= WIDEST:
            raise ValueError(f"{self.count:,} heads of {self.dim:,} over {self.kv:,} key and value heads")

    @property
    def shared_kv(self) -> bool:
        """Whether K and V stay with every width: query heads are the units, and several share a KV head."""
        return self.kv < self.count and not self.kv_groups

    @property
    def unit(self) -> str:
        """Key in an architecture."""
        return "kv_heads" if self.kv < self.count and self.kv_groups else "heads"

    @property
    def units(self) -> int:
        """How many there are."""
        return self.kv if self.unit == "kv_heads" else self.count

    @property
    def groups(self) -> int:
        """KV groups that must keep the same number of query heads; 1 where that is no constraint."""
        return self.kv if self.shared_kv else 1

    @property
    def per_unit(self) -> int:
        """Query heads of one unit."""
        return self.count // self.units

    def q(self) -> tuple[Segment, ...]:
        """Units among query rows, or among the columns of the output projection."""
        return (Segment(self.per_unit * self.dim),)

    def k(self, offset: int = 0) -> tuple[Segment, ...]:
        """Units among key rows, or among value rows."""
        return () if self.shared_kv else (Segment(self.dim, offset),)

    def spec(self, options: Options) -> SubBlockSpec:
        """Attention as the search space sees it, its matrices not counted yet."""
        grouped = self.unit == "kv_heads"
        return SubBlockSpec(
            "attention",
            self.unit,
            self.units,
            # equal query heads in every KV group, and the user's wish
            quantum=options.kv_quantum if grouped else math.lcm(self.groups, options.head_quantum),
            score_width=self.per_unit * self.dim,
            cache_per_unit=0 if self.shared_kv else 2 * self.dim,
            fixed_cache=2 * self.kv * self.dim if self.shared_kv else 0,
            heads_per_unit=self.per_unit,
        )


@dataclass(frozen=True)
class LlamaLike(Family):
    """A family whose blocks are `model.layers[i]` with `self_attn` and `mlp` as in Llama.

    Args:
        model_type: of transformers.
        qk_norm: whether q and k pass an RMSNorm of `head_dim` per head (Qwen3).
        attention_norms, mlp_norms: norms of a block that belong to each sub-block.
        attention_post_norm, mlp_post_norm: the one of them that its output passes; empty: none (Llama).
        layers_path: of the list of blocks.
        attention: path of the attention module in a block; the MLP's is `mlp`.
        norm_vectors: parameters per feature of a norm: 1, or 2 with a bias (LayerNorm).
        tied_by_default: whether head and embeddings are one tensor where config.json does not say.
        fixed_biases: which projections have biases, whatever the configuration says; None: it says so.
    """

    model_type: str
    qk_norm: bool = False
    attention_norms: tuple[str, ...] = ("input_layernorm",)
    mlp_norms: tuple[str, ...] = ("post_attention_layernorm",)
    attention_post_norm: str = ""
    mlp_post_norm: str = ""
    layers_path: str = "model.layers"
    attention: str = "self_attn"
    norm_vectors: int = 1
    tied_by_default: bool = False
    fixed_biases: Biases | None = None

    # --- what families replace --------------------------------------------------------------------

    def biases(self, config: Mapping[str, Any]) -> Biases:
        """Which projections have biases under this configuration."""
        if self.fixed_biases is not None:
            return self.fixed_biases
        attention = bool(config.get("attention_bias", False))
        return Biases(qkv=attention, o=attention, mlp=bool(config.get("mlp_bias", False)))

    def heads(self, config: Mapping[str, Any], options: Options) -> Heads:
        """The heads of a block with this configuration."""
        hidden, count = int(config["hidden_size"]), int(config["num_attention_heads"])
        kv = int(config.get("num_key_value_heads") or count)
        return Heads(hidden, count, kv, int(config.get("head_dim") or hidden // count), options.kv_groups)

    def attention_projections(self, config: Mapping[str, Any], heads: Heads) -> tuple[Projection, ...]:
        """The matrices of attention; the last one is its output projection."""
        at, bias = self.attention + ".", self.biases(config)
        queries, keys = heads.count * heads.dim, heads.kv * heads.dim
        return (
            Projection(at + "q_proj", queries, heads.hidden, heads.q(), bias=bias.qkv, source="attention_in"),
            Projection(at + "k_proj", keys, heads.hidden, heads.k(), bias=bias.qkv, source="attention_in"),
            Projection(at + "v_proj", keys, heads.hidden, heads.k(), bias=bias.qkv, source="attention_in"),
            Projection(at + "o_proj", heads.hidden, queries, (), heads.q(), bias=bias.o, source="attention_out"),
        )

    def width_norms(self, heads: Heads) -> tuple[Projection, ...]:
        """Norms in attention over the width of all heads: none."""
        return ()

    def attributes(self, heads: Heads) -> tuple[Attribute, ...]:
        """Numbers that the attention module keeps and that depend on its width."""
        return (Attribute(f"{self.attention}.num_key_value_groups", heads.kv),) if heads.shared_kv else ()

    def mlp_projections(self, config: Mapping[str, Any]) -> tuple[Projection, ...]:
        """The matrices of the MLP; the last one is its output projection."""
        hidden, width = int(config["hidden_size"]), int(config["intermediate_size"])
        bias, channel = self.biases(config).mlp, (Segment(1),)
        return (
            Projection("mlp.gate_proj", width, hidden, channel, bias=bias, source="mlp_in"),
            Projection("mlp.up_proj", width, hidden, channel, bias=bias, source="mlp_in"),
            Projection("mlp.down_proj", hidden, width, (), channel, bias=bias, source="mlp_out"),
        )

    # --- the protocol -----------------------------------------------------------------------------

    def blocks(self, config: Mapping[str, Any], options: Options) -> tuple[Block, ...]:
        """Every block, from `config.json`."""
        locals_ = [layer_config(config, i) for i in range(block_count(config, "num_hidden_layers"))]
        return tuple(
            Block(f"{self.layers_path}.{i}", (self._attention(local, options), self._mlp(local, i, options)))
            for i, local in enumerate(locals_)
        )

    def tied(self, config: Mapping[str, Any]) -> bool:
        """As config.json says."""
        stated = config.get("tie_word_embeddings")
        return self.tied_by_default if stated is None else bool(stated)

    def outside(self, config: Mapping[str, Any]) -> int:
        """Embeddings, head (once if tied) and final norm."""
        matrices = 1 if self.tied(config) else 2
        return self.head_weights(config) * matrices + int(config["hidden_size"]) * self.norm_vectors

    def head_weights(self, config: Mapping[str, Any]) -> int:
        """Entries of the language-model head's matrix."""
        return int(config["vocab_size"]) * int(config["hidden_size"])

    def layer_overrides(self, config: Mapping[str, Any], index: int, block: Block, layer: Layer) -> dict[str, Any]:
        """Head counts and MLP width of a cut block, and which of its sub-blocks are skipped."""
        local = layer_config(config, index)
        names = [s.spec.name for s, count in within(block, layer) if count == 0]
        heads, channels = self.head_overrides(local, dict(layer.kept)), layer["channels"]
        return {**heads, **self.width_overrides(local, index, channels), **({"skip": names} if names else {})}

    def stub_overrides(self, config: Mapping[str, Any], index: int) -> dict[str, Any]:
        """What `layer_overrides` says of the heads of block `index` if one query head with its own K and V is left."""
        return self.head_overrides(layer_config(config, index), {"heads": 1, "kv_heads": 1})

    def head_overrides(self, local: Mapping[str, Any], kept: Mapping[str, int]) -> dict[str, Any]:
        """Head counts of a cut block; those of the base where attention is bypassed."""
        heads = self.heads(local, Options())
        count, kv = heads.count, heads.kv
        if kept.get("heads") and kept.get("kv_heads"):
            count, kv = kept["heads"], kept["kv_heads"]
        elif kept.get("kv_heads"):
            count, kv = kept["kv_heads"] * (count // kv), kept["kv_heads"]
        elif kept.get("heads"):
            count, kv = kept["heads"], kept["heads"] if kv == count else kv
        return {"num_attention_heads": count, "num_key_value_heads": kv}

    def width_overrides(self, local: Mapping[str, Any], index: int, channels: int) -> dict[str, Any]:
        """MLP width of a cut block; the base's where the MLP is bypassed."""
        return {"intermediate_size": channels or int(local["intermediate_size"])}

    # --- sub-blocks -------------------------------------------------------------------------------

    def _attention(self, config: Mapping[str, Any], options: Options) -> SubBlock:
        heads = self.heads(config, options)
        norms = heads.hidden * self.norm_vectors * len(self.attention_norms)
        sub = SubBlock(
            heads.spec(options),
            self.attention_projections(config, heads),
            self.attention,
            norms=self.attention_norms,
            post_norm=self.attention_post_norm,
            groups=heads.groups,
            attributes=self.attributes(heads),
            outputs=2,
            width_norms=self.width_norms(heads),
        )
        present = "attention" not in config.get("skip", ())
        return counted(sub, norms + (2 * heads.dim if self.qk_norm else 0), present=present)

    def _mlp(self, config: Mapping[str, Any], index: int, options: Options) -> SubBlock:
        projections = self.mlp_projections(config)
        spec = SubBlockSpec("mlp", "channels", projections[-1].columns, quantum=options.channel_quantum)
        sub = SubBlock(spec, projections, "mlp", norms=self.mlp_norms, post_norm=self.mlp_post_norm)
        norms = int(config["hidden_size"]) * self.norm_vectors * len(self.mlp_norms)
        return counted(sub, norms, present="mlp" not in config.get("skip", ()))
