"""GPT-NeoX and Pythia (`model_type: gpt_neox`): q, k, v of each head fused, LayerNorm, biases, an MLP without gate.

Attention and MLP may read the same residual stream (`use_parallel_residual`); for either of them to be bypassed is
the same either way. The attention module takes its width from `hidden_size`, so a cut block says the shapes of its
matrices (`tracenas_shapes` in its `per_layer_config`) instead of a number of heads.
"""

from collections.abc import Mapping
from typing import Any

from tracenas.families.decoder import Biases, Heads, LlamaLike
from tracenas.families.description import Options, Projection, Segment

__all__ = ["FAMILY"]


class GPTNeoX(LlamaLike):
    """Heads lie in `query_key_value` one after the other, each as [q | k | v]."""

    head_names = ("embed_out.weight", "lm_head.weight")
    embedding_names = ("gpt_neox.embed_in.weight", "embed_in.weight")
    final_norm = "gpt_neox.final_layer_norm"

    def biases(self, config: Mapping[str, Any]) -> Biases:
        """Everywhere, unless attention is said to have none."""
        attention = bool(config.get("attention_bias", True))
        return Biases(qkv=attention, o=attention, mlp=True)

    def heads(self, config: Mapping[str, Any], options: Options) -> Heads:
        """The heads of a block: those of the model, or what the shape of its output projection says."""
        hidden, count = int(config["hidden_size"]), int(config["num_attention_heads"])
        dim = hidden // count
        if shape := (config.get("tracenas_shapes") or {}).get("attention.dense"):
            count = int(shape[1]) // dim
        return Heads(hidden, count, count, dim)

    def version_4(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Rotary positions under names of its own."""
        names = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
        return {names.get(key, key): value for key, value in super().version_4(config).items()}

    def attention_projections(self, config: Mapping[str, Any], heads: Heads) -> tuple[Projection, ...]:
        """[q | k | v] of every head, and the output projection."""
        width, bias = heads.count * heads.dim, self.biases(config)
        fused = (Segment(3 * heads.dim),)
        return (
            Projection(
                "attention.query_key_value", 3 * width, heads.hidden, fused, bias=bias.qkv, source="attention_in"
            ),
            Projection("attention.dense", heads.hidden, width, (), heads.q(), bias=bias.o, source="attention_out"),
        )

    def mlp_projections(self, config: Mapping[str, Any]) -> tuple[Projection, ...]:
        """In and out."""
        hidden, width, channel = int(config["hidden_size"]), int(config["intermediate_size"]), (Segment(1),)
        return (
            Projection("mlp.dense_h_to_4h", width, hidden, channel, bias=True, source="mlp_in"),
            Projection("mlp.dense_4h_to_h", hidden, width, (), channel, bias=True, source="mlp_out"),
        )

    def head_overrides(self, local: Mapping[str, Any], kept: Mapping[str, int]) -> dict[str, Any]:
        """The shapes of both matrices of attention where heads are gone."""
        heads = self.heads(local, Options())
        count = kept.get("heads") or heads.count
        if count == int(local["num_attention_heads"]):
            return {}
        width = count * heads.dim
        shapes = {"attention.query_key_value": [3 * width, heads.hidden], "attention.dense": [heads.hidden, width]}
        return {"tracenas_shapes": shapes}


FAMILY = GPTNeoX("gpt_neox", layers_path="gpt_neox.layers", attention="attention", norm_vectors=2)
