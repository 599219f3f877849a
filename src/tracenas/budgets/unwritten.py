"""Architectures of a model as GGUF layouts see checkpoints, before there is one: by config.json and shapes alone."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from tracenas.budgets.kind import Counted, matrices
from tracenas.exporters.gguf.model import Decoder, decoder_of
from tracenas.exporters.gguf.weights import Array
from tracenas.families import Family, SubBlock, within
from tracenas.families.decoder import LlamaLike
from tracenas.space.architecture import Architecture

__all__ = ["Shapes", "head_dim", "unwritten"]

_DEFAULTS = {
    **{"head_dim": None, "hidden_act": "silu", "rms_norm_eps": 1e-6, "max_position_embeddings": 2048},
    **{"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
}
"""What config.json may leave out: of these only whether they are there changes the size."""


@dataclass(frozen=True)
class Shapes:
    """The tensors of a checkpoint that has not been written, by their shapes alone."""

    shapes: Mapping[str, tuple[int, ...]]

    def read(self, name: str) -> Array:
        """Nothing is there."""
        raise RuntimeError(f"{name}: only its shape is known")


def unwritten(model: Counted, arch: Architecture) -> tuple[Decoder, Shapes]:
    """An architecture's checkpoint as the layouts see it, by config.json and what it leaves out."""
    source, config = model.source, model.source.config
    family, hidden, vocab = source.family, int(config["hidden_size"]), int(config["vocab_size"])
    shapes = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    if not family.tied(config):
        shapes["lm_head.weight"] = (vocab, hidden)
    kept = [(b, layer) for b, layer in zip(model.blocks, arch.layers, strict=True) if not layer.skip]
    for index, (block, layer) in enumerate(kept):
        for sub, units in within(block, layer):
            if units:
                shapes |= _tensors(family, config, f"model.layers.{index}.", sub, units)
    rope = config.get("rope_parameters") or {"rope_theta": 10000.0, **(config.get("rope_scaling") or {})}
    full = SimpleNamespace(
        **{
            **_DEFAULTS,
            **config,
            "num_hidden_layers": len(kept),
            "tie_word_embeddings": family.tied(config),
            "rope_parameters": {"rope_type": rope.get("type", "default"), **rope},
            "layer_types": None,
        }
    )
    return decoder_of(family, full, shapes), Shapes(shapes)


def _tensors(
    family: Family, config: Mapping[str, Any], at: str, sub: SubBlock, units: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a sub-block's tensors at a width."""
    for matrix, rows, columns in matrices(sub, units):
        yield f"{at}{matrix.path}.weight", (rows, columns)
        if matrix.bias:
            yield f"{at}{matrix.path}.bias", (rows,)
    for norm in sub.norms:
        yield f"{at}{norm}.weight", (int(config["hidden_size"]),)
    if sub.spec.name == "attention" and isinstance(family, LlamaLike) and family.qk_norm:
        for part in "qk":
            yield f"{at}self_attn.{part}_norm.weight", (head_dim(config),)


def head_dim(config: Mapping[str, Any]) -> int:
    """Width of a head."""
    return int(config.get("head_dim") or int(config["hidden_size"]) // int(config["num_attention_heads"]))
