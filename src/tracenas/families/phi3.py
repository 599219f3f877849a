"""Phi 3 and 4, dense (`model_type: phi3`): one matrix [q | k | v] and one [gate | up], no biases."""

from collections.abc import Mapping
from typing import Any

from tracenas.families.decoder import Heads, LlamaLike
from tracenas.families.description import Attribute, Projection, Segment

__all__ = ["FAMILY"]


class Phi3(LlamaLike):
    """Fused projections; where q ends, attention reads from its configuration on every call."""

    def attention_projections(self, config: Mapping[str, Any], heads: Heads) -> tuple[Projection, ...]:
        """[q | k | v] and the output projection."""
        queries, keys = heads.count * heads.dim, heads.kv * heads.dim
        units = heads.q() + heads.k(queries) + heads.k(queries + keys)
        return (
            Projection("self_attn.qkv_proj", queries + 2 * keys, heads.hidden, units, source="attention_in"),
            Projection("self_attn.o_proj", heads.hidden, queries, (), heads.q(), source="attention_out"),
        )

    def version_4(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Of scaled rotary positions `type` and the two lists of factors, and nothing else."""
        keys = super().version_4(config)
        if scaling := keys.get("rope_scaling"):
            factors = {name: scaling[name] for name in ("short_factor", "long_factor") if name in scaling}
            keys["rope_scaling"] = {"type": scaling["rope_type"], **factors}
        return keys

    def attributes(self, heads: Heads) -> tuple[Attribute, ...]:
        """Query heads as the configuration has them, and the module's own numbers of KV heads and of their queries."""
        queries = Attribute("self_attn.config.num_attention_heads", factor=heads.per_unit)
        kv_heads = () if heads.shared_kv else (Attribute("self_attn.num_key_value_heads"),)
        return (queries, *kv_heads, *super().attributes(heads))

    def mlp_projections(self, config: Mapping[str, Any]) -> tuple[Projection, ...]:
        """[gate | up] and down."""
        hidden, width = int(config["hidden_size"]), int(config["intermediate_size"])
        fused = (Segment(1), Segment(1, width))
        return (
            Projection("mlp.gate_up_proj", 2 * width, hidden, fused, source="mlp_in"),
            Projection("mlp.down_proj", hidden, width, (), (Segment(1),), source="mlp_out"),
        )


FAMILY = Phi3("phi3")
