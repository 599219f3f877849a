"""What a layout is, and what layouts share: metadata of every decoder, and tensors by their two names."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tracenas.exporters.gguf.model import Decoder
from tracenas.exporters.gguf.weights import Array, Weights

__all__ = [
    "ATTENTION_NAMES",
    "MLP_NAMES",
    "QK_NORM_NAMES",
    "FileDraft",
    "Layout",
    "Tensor",
    "block_tensors",
    "common_metadata",
    "first_reason",
    "interleaved",
    "outer_tensors",
    "renamed",
    "window_note",
]

ATTENTION_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
}
MLP_NAMES = {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
QK_NORM_NAMES = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}

Change = Callable[[Array], Array]
"""Of a tensor's values; its shape stays."""


@dataclass(frozen=True)
class Tensor:
    """A tensor of the file: its name and shape there, what it is made of, and how.

    Args:
        shape: rows first, as numpy has it (GGUF files list the dimensions in reverse).
        sources: names in the checkpoint.
    """

    name: str
    shape: tuple[int, ...]
    sources: tuple[str, ...]
    make: Callable[[], Array]


@dataclass(frozen=True)
class FileDraft:
    """A file that is yet to be written.

    Args:
        arch: `general.architecture`.
        metadata: beside it and the tokenizer's.
        notes: what the user must know: stubs, padding and its cost, a context cut to the window.
        added: parameters that are zeros of stubs and padding.
    """

    arch: str
    metadata: dict[str, Any]
    tensors: tuple[Tensor, ...]
    notes: tuple[str, ...] = ()
    added: int = 0


@dataclass(frozen=True)
class Layout:
    """One way to store a decoder so that llama.cpp computes the same function.

    Args:
        name: as in the registry.
        objection: why it cannot hold a model; empty if it can.
        draft: metadata and tensors of a model that it can hold.
    """

    name: str
    objection: Callable[[Decoder], str]
    draft: Callable[[Decoder, Weights], FileDraft]


def common_metadata(arch: str, model: Decoder, *, per_block: bool) -> dict[str, Any]:
    """What llama.cpp reads of every decoder; counts as lists if blocks may differ."""
    counts = {
        "feed_forward_length": [b.width for b in model.blocks],
        "attention.head_count": [b.heads for b in model.blocks],
        "attention.head_count_kv": [b.kv for b in model.blocks],
    }
    values: dict[str, Any] = {
        "block_count": len(model.blocks),
        "context_length": min(model.positions, model.window or model.positions),
        "embedding_length": model.hidden,
        "vocab_size": model.vocab,
        "attention.layer_norm_rms_epsilon": model.eps,
        "attention.key_length": model.head_dim,
        "attention.value_length": model.head_dim,
        **{key: each if per_block else each[0] for key, each in counts.items()},
        **model.ropes[0].metadata(),
    }
    return {f"{arch}.{key}": value for key, value in values.items()}


def window_note(model: Decoder) -> tuple[str, ...]:
    """Said where the layout has no sliding window: within the window the function is the same."""
    if model.window is None or model.window >= model.positions:
        return ()
    return (
        f"llama.cpp has no sliding window in this layout: context_length is {model.window} (the window) instead of "
        f"{model.positions}; up to there the model is the same, do not raise it",
    )


def renamed(weights: Weights, source: str, name: str, change: Change | None = None) -> Tensor:
    """One tensor of the checkpoint under another name, changed on the way if there is a change."""

    def make() -> Array:
        tensor = weights.read(source)
        return tensor if change is None else change(tensor)

    return Tensor(name, weights.shapes[source], (source,), make)


def block_tensors(
    weights: Weights, index: int, names: Mapping[str, str], changes: Mapping[str, Change | None] | None = None
) -> list[Tensor]:
    """Weights and biases of a block under the names of the file, those that there are.

    Args:
        names: module in the block → name in the file.
        changes: of a module's tensors, by their name in the file.
    """
    at, to, changes = f"model.layers.{index}.", f"blk.{index}.", changes or {}
    return [
        renamed(weights, f"{at}{source}.{kind}", f"{to}{name}.{kind}", changes.get(name))
        for source, name in names.items()
        for kind in ("weight", "bias")
        if f"{at}{source}.{kind}" in weights.shapes
    ]


def outer_tensors(model: Decoder, weights: Weights, norm: Change | None = None) -> tuple[list[Tensor], list[Tensor]]:
    """What stands before and behind the blocks: embeddings and rope factors; final norm and head."""
    before = [renamed(weights, "model.embed_tokens.weight", "token_embd.weight")]
    factors = model.ropes[0].factors()
    if factors is not None:
        before.append(Tensor("rope_freqs.weight", factors.shape, (), partial(np.copy, factors)))
    behind = [renamed(weights, "model.norm.weight", "output_norm.weight", norm)]
    if not model.tied:
        behind.append(renamed(weights, "lm_head.weight", "output.weight"))
    return before, behind


def interleaved(head_dim: int) -> Change:
    """Rows of every head from transformers' order to interleaved pairs.

    transformers turns coordinates j and j + d/2 of a head as a pair, ggml's `NORM` rope 2j and 2j + 1:
    row 2j + h of the result is row h · d/2 + j, for h in {0, 1}. Of weights [heads · d, hidden] and biases alike.
    """

    def permute(tensor: Array) -> Array:
        halves = tensor.reshape(-1, 2, head_dim // 2, *tensor.shape[1:])
        return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(tensor.shape)

    return permute


def first_reason(reasons: Sequence[tuple[bool, str]]) -> str:
    """The first reason whose condition holds; empty if none does."""
    return next((reason for holds, reason in reasons if holds), "")
