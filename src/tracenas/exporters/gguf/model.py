"""What a GGUF layout asks of a checkpoint: the shape of every block, and what the families do differently."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tracenas.errors import UserError
from tracenas.exporters.gguf.rope import Rope, rotary_embeddings
from tracenas.families import Family
from tracenas.families.decoder import LlamaLike

__all__ = ["FAMILIES", "BlockShape", "Decoder", "decoder_of", "gguf_decoder"]

FAMILIES = ("gemma", "gemma2", "gemma3_text", "llama", "mistral", "qwen2", "qwen3")
"""Decoders of separate q, k, v, o and a gated MLP, whose tensors the layouts know."""


@dataclass(frozen=True)
class BlockShape:
    """Query heads, key and value heads, and MLP width of a block; 0 where attention or MLP was removed."""

    heads: int
    kv: int
    width: int


@dataclass(frozen=True)
class Decoder:
    """A checkpoint as the layouts see it.

    Args:
        family: `model_type` of the base.
        blocks: one shape per block.
        norms: of a block's attention and of its MLP, in the order in which they are passed.
        windows: per block, how many tokens it attends to; None for all.
        biases: which projections have one: `q`, `k`, `v`, `o`, `mlp`.
        activation: of the MLP's gate.
        positions: the longest sequence it was made for.
        ropes: rotary embedding of blocks that attend to everything, and of those with a window.
        config: transformers' configuration object, for what only one family has.
    """

    family: str
    hidden: int
    head_dim: int
    vocab: int
    blocks: tuple[BlockShape, ...]
    norms: tuple[tuple[str, ...], tuple[str, ...]]
    windows: tuple[int | None, ...]
    tied: bool
    qk_norm: bool
    biases: frozenset[str]
    activation: str
    eps: float
    positions: int
    ropes: tuple[Rope, Rope]
    config: Any

    @property
    def uniform(self) -> bool:
        """Whether all blocks have one shape with attention and MLP."""
        first = self.blocks[0]
        return set(self.blocks) == {first} and first.heads > 0 and first.width > 0

    @property
    def window(self) -> int | None:
        """The narrowest window of any block; None if all attend to everything."""
        return min((w for w in self.windows if w is not None), default=None)

    @property
    def headless(self) -> frozenset[int]:
        """Blocks without attention."""
        return frozenset(i for i, block in enumerate(self.blocks) if block.heads == 0)

    @property
    def flat(self) -> frozenset[int]:
        """Blocks without an MLP."""
        return frozenset(i for i, block in enumerate(self.blocks) if block.width == 0)

    def first(self, count: int) -> "Decoder":
        """The model of its first `count` blocks."""
        return replace(self, blocks=self.blocks[:count], windows=self.windows[:count])


def gguf_decoder(family: Family, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Decoder:
    """A checkpoint as the layouts see it: counts from its tensors, all else from its configuration with all defaults.

    Args:
        config: its config.json.
        shapes: of its tensors.

    Raises:
        UserError: for a family or a setting that no layout knows.
    """
    _check_family(family)
    return decoder_of(family, _configuration(family.model_type, config), shapes)


def _check_family(family: Family) -> LlamaLike:
    name = family.model_type
    if name not in FAMILIES or not isinstance(family, LlamaLike):
        raise UserError(
            f"--format gguf knows no layout for the family '{name}'; accepted: {', '.join(FAMILIES)} "
            "(a stock checkpoint of another family: use llama.cpp's own convert_hf_to_gguf.py)"
        )
    return family


def decoder_of(family: Family, full: Any, shapes: Mapping[str, tuple[int, ...]]) -> Decoder:
    """The same from a configuration that has its defaults.

    Args:
        full: transformers' configuration object, or what has the same attributes.
    """
    like, name = _check_family(family), family.model_type
    head_dim = int(getattr(full, "head_dim", None) or full.hidden_size // full.num_attention_heads)
    depth = int(full.num_hidden_layers)
    return Decoder(
        family=name,
        hidden=int(full.hidden_size),
        head_dim=head_dim,
        vocab=int(shapes["model.embed_tokens.weight"][0]),
        blocks=tuple(_block(shapes, i, head_dim) for i in range(depth)),
        norms=(like.attention_norms, like.mlp_norms),
        windows=_windows(full, depth),
        tied=bool(full.tie_word_embeddings) or "lm_head.weight" not in shapes,
        qk_norm=any(n.endswith(".self_attn.q_norm.weight") for n in shapes),
        biases=_biases(shapes),
        activation=str(getattr(full, "hidden_activation", None) or full.hidden_act),
        eps=float(full.rms_norm_eps),
        positions=int(full.max_position_embeddings),
        ropes=rotary_embeddings(full, head_dim),
        config=full,
    )


def _configuration(name: str, config: Mapping[str, Any]) -> Any:
    """Transformers' configuration object: config.json leaves out what equals the family's defaults."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from tracenas.models.shipped import heterogeneous

    kind = heterogeneous.build(name)[0] if "base_model_type" in config else CONFIG_MAPPING[name]
    return kind.from_dict(dict(config))


def _block(shapes: Mapping[str, tuple[int, ...]], index: int, head_dim: int) -> BlockShape:
    def rows(name: str) -> int:
        return shapes.get(f"model.layers.{index}.{name}.weight", (0,))[0]

    return BlockShape(rows("self_attn.q_proj") // head_dim, rows("self_attn.k_proj") // head_dim, rows("mlp.up_proj"))


def _biases(shapes: Mapping[str, tuple[int, ...]]) -> frozenset[str]:
    names = [name.removesuffix("_proj.bias") for name in shapes if name.endswith("_proj.bias")]
    return frozenset("mlp" if ".mlp." in name else name[-1] for name in names)


def _windows(config: Any, depth: int) -> tuple[int | None, ...]:
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if window is None or not getattr(config, "use_sliding_window", True):
        return (None,) * depth
    if kinds is None:
        return (int(window),) * depth
    return tuple(int(window) if kind == "sliding_attention" else None for kind in kinds[:depth])
