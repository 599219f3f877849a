"""T5, T5 v1.1 and Flan-T5 (`model_type: t5`): encoder and decoder, self- and cross-attention, gated FFN or not.

The position bias is one table per stack, [buckets, heads]. It stays whole; a cut block names, in `bias_heads` of its
configuration, which columns are its heads'. config.json gives one number of heads and one FFN width for all blocks
(`num_heads`, `d_ff`), so what the blocks of a pruned model have stands in `tracenas_layers`:

    {"encoder": {"0": {"num_heads": 3, "bias_heads": [0, 2, 5], "d_ff": 64}, …},
     "decoder": {"0": {"num_heads": 2, "bias_heads": [1, 4], "num_cross_heads": 3, "d_ff": 96, "skip": ["mlp"]}, …}}
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tracenas.families.counted import counted
from tracenas.families.decoder import Heads
from tracenas.families.description import (
    Attribute,
    Block,
    Family,
    Options,
    PositionBias,
    Projection,
    Segment,
    SubBlock,
    block_count,
)
from tracenas.families.iteration import within
from tracenas.space.architecture import Layer
from tracenas.space.sub_block import SubBlockSpec

__all__ = ["FAMILY", "T5", "block_config"]

_SELF, _CROSS = "layer.0.SelfAttention", "layer.1.EncDecAttention"
# Names that other families' configurations have, and T5's for the same things.
_ALIASES = (
    ("hidden_size", "d_model"),
    ("num_attention_heads", "num_heads"),
    ("num_hidden_layers", "num_layers"),
    ("intermediate_size", "d_ff"),
    ("head_dim", "d_kv"),
)


def block_config(config: Mapping[str, Any], stack: str, index: int) -> dict[str, Any]:
    """What config.json says of block `index` of a stack: the global values with the block's own over them."""
    layers: Mapping[str, Any] = ((config.get("tracenas_layers") or {}).get(stack)) or {}
    local: Mapping[str, Any] = layers.get(str(index)) or {}
    return {**config, "num_cross_heads": config["num_heads"], **local}


@dataclass(frozen=True)
class T5(Family):
    """Blocks `encoder.block[i]` and `decoder.block[i]`.

    Args:
        model_type: of transformers.
    """

    model_type: str

    stacks = ("encoder", "decoder")
    embedding_names = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    final_norm = "decoder.final_layer_norm"

    def normalised(self, config: Mapping[str, Any], stores: Callable[[str], bool] | None) -> Mapping[str, Any]:
        """Other families' names beside T5's own; positions of both sides together; whether the head is its own.

        transformers 5 calls every T5 tied when it writes config.json: where the head is not scaled, only the files
        say whether it has a tensor of its own.
        """
        named = {new: config[old] for new, old in _ALIASES if old in config}
        if config.get("n_positions"):
            named["max_position_embeddings"] = 2 * int(config["n_positions"])
        named |= config
        unscaled = config.get("scale_decoder_outputs") is False and config.get("tie_word_embeddings") is not False
        if unscaled and stores is not None:
            if stores("lm_head.weight"):
                named["tie_word_embeddings"] = False
            else:
                del named["scale_decoder_outputs"]
        return named

    def tied(self, config: Mapping[str, Any]) -> bool:
        """Whether head and embeddings are one tensor: then, and only then, T5 scales what enters the head.

        transformers 5 calls every T5 tied when it writes config.json, and says in `scale_decoder_outputs` what
        `tie_word_embeddings` said before.
        """
        return config.get("tie_word_embeddings") is not False and config.get("scale_decoder_outputs") is not False

    def depths(self, config: Mapping[str, Any]) -> dict[str, int]:
        """Blocks per stack."""
        decoder = "num_decoder_layers" if config.get("num_decoder_layers") else "num_layers"
        return {"encoder": block_count(config, "num_layers"), "decoder": block_count(config, decoder)}

    def blocks(self, config: Mapping[str, Any], options: Options) -> tuple[Block, ...]:
        """Every block, those of the encoder first."""
        return tuple(
            Block(
                f"{stack}.block.{index}",
                self._sub_blocks(block_config(config, stack, index), stack, options),
                stack,
                ("position_bias", "encoder_decoder_position_bias"),
            )
            for stack, depth in self.depths(config).items()
            for index in range(depth)
        )

    def outside(self, config: Mapping[str, Any]) -> int:
        """Embeddings, head (once if tied), both final norms and both tables of position biases."""
        matrices = 1 if self.tied(config) else 2
        tables = 2 * int(config.get("relative_attention_num_buckets") or 32) * int(config["num_heads"])
        return self.head_weights(config) * matrices + 2 * int(config["d_model"]) + tables

    def head_weights(self, config: Mapping[str, Any]) -> int:
        """Entries of the language-model head's matrix."""
        return int(config["vocab_size"]) * int(config["d_model"])

    def layer_overrides(self, config: Mapping[str, Any], index: int, block: Block, layer: Layer) -> dict[str, Any]:
        """Head counts and FFN width of a cut block (the base's where they are gone), and what is skipped."""
        base = block_config(config, block.stack, int(block.path.rpartition(".")[2]))
        keys = {"attention": "num_heads", "cross_attention": "num_cross_heads", "mlp": "d_ff"}
        counts = {s.spec.name: count for s, count in within(block, layer)}
        local: dict[str, Any] = {keys[name]: count or int(base[keys[name]]) for name, count in counts.items()}
        skip = [name for name, count in counts.items() if not count]
        return {**local, "skip": skip} if skip else local

    # --- sub-blocks -------------------------------------------------------------------------------

    def _sub_blocks(self, local: Mapping[str, Any], stack: str, options: Options) -> tuple[SubBlock, ...]:
        heads = self._heads(local, "num_heads", options)
        table = f"{stack}.block.0.{_SELF}.relative_attention_bias"
        columns = tuple(int(i) for i in local.get("bias_heads") or range(heads.count))
        attention = self._attention(
            "attention", heads, local, options, PositionBias(table, columns), stack == "encoder"
        )
        if stack == "encoder":
            return attention, self._mlp(local, 1, options)
        cross = self._heads(local, "num_cross_heads", options)
        crossing = self._attention("cross_attention", cross, local, options, PositionBias(), True)
        return attention, crossing, self._mlp(local, 2, options)

    def _heads(self, local: Mapping[str, Any], key: str, options: Options) -> Heads:
        count = int(local[key])
        return Heads(int(local["d_model"]), count, count, int(local.get("d_kv") or 64), options.kv_groups)

    def _attention(
        self,
        name: str,
        heads: Heads,
        local: Mapping[str, Any],
        options: Options,
        bias: PositionBias,
        bidirectional: bool,
    ) -> SubBlock:
        cross = name == "cross_attention"
        module, norm = (_CROSS, "layer.1.layer_norm") if cross else (_SELF, "layer.0.layer_norm")
        width, hidden, at = heads.count * heads.dim, heads.hidden, module + "."
        queries, keys = ("cross_in", "encoder_out") if cross else ("attention_in", "attention_in")
        projections = (
            Projection(at + "q", width, hidden, heads.q(), source=queries),
            Projection(at + "k", width, hidden, heads.k(), source=keys),
            Projection(at + "v", width, hidden, heads.k(), source=keys),
            Projection(at + "o", hidden, width, (), heads.q(), source="cross_out" if cross else "attention_out"),
        )
        spec = replace(heads.spec(options), name=name, bidirectional=bidirectional)
        if cross:
            spec = replace(spec, unit="cross_heads")
        elif bidirectional:
            spec = replace(spec, cache_per_unit=0)
        sub = SubBlock(
            spec,
            projections,
            module,
            norms=(norm,),
            attributes=(Attribute(at + "n_heads"),),
            outputs=3,
            position_bias=bias,
        )
        return counted(sub, hidden, present=name not in local.get("skip", ()))

    def _mlp(self, local: Mapping[str, Any], place: int, options: Options) -> SubBlock:
        hidden, width, channel = int(local["d_model"]), int(local["d_ff"]), (Segment(1),)
        module = f"layer.{place}.DenseReluDense"
        gated = str(local.get("feed_forward_proj") or "relu").startswith("gated")
        into = ("wi_0", "wi_1") if gated else ("wi",)
        projections = (
            *(Projection(f"{module}.{name}", width, hidden, channel, source="mlp_in") for name in into),
            Projection(f"{module}.wo", hidden, width, (), channel, source="mlp_out"),
        )
        spec = SubBlockSpec("mlp", "channels", width, quantum=options.channel_quantum)
        sub = SubBlock(spec, projections, module, norms=(f"layer.{place}.layer_norm",))
        return counted(sub, hidden, present="mlp" not in local.get("skip", ()))


FAMILY = T5("t5")
