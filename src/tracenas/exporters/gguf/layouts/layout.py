"""What a layout is, and what layouts share: metadata of every decoder, and tensors by their two names."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from tracenas.exporters.gguf.model import Decoder
from tracenas.exporters.gguf.weights import Array, Weights

__all__ = [
    "ATTENTION_NAMES",
    "MLP_NAMES",
    "Draft",
    "Layout",
    "Tensor",
    "common_metadata",
    "first_of",
    "interleaved",
    "moved",
    "outer_tensors",
    "window_note",
]

ATTENTION_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
}
MLP_NAMES = {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}


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
class Draft:
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


class Layout(Protocol):
    """One way to store a decoder so that llama.cpp computes the same function."""

    @property
    def name(self) -> str:
        """As in the registry."""
        ...

    def objection(self, model: Decoder) -> str:
        """Why it cannot hold the model; empty if it can."""
        ...

    def draft(self, model: Decoder, weights: Weights) -> Draft:
        """Metadata and tensors of a model that it can hold."""
        ...


def common_metadata(arch: str, model: Decoder, *, per_block: bool) -> dict[str, Any]:
    """What llama.cpp reads of every decoder; counts as lists if blocks may differ."""
    blocks = model.blocks
    counts = {
        "feed_forward_length": [b.width for b in blocks],
        "attention.head_count": [b.heads for b in blocks],
        "attention.head_count_kv": [b.kv for b in blocks],
    }
    found: dict[str, Any] = {
        f"{arch}.block_count": len(blocks),
        f"{arch}.context_length": min(model.positions, model.window or model.positions),
        f"{arch}.embedding_length": model.hidden,
        f"{arch}.vocab_size": model.vocab,
        f"{arch}.attention.layer_norm_rms_epsilon": model.eps,
        f"{arch}.attention.key_length": model.head_dim,
        f"{arch}.attention.value_length": model.head_dim,
    }
    found |= {f"{arch}.{key}": list(each) if per_block else each[0] for key, each in counts.items()}
    return found | model.ropes[0].metadata(arch)


def window_note(model: Decoder) -> tuple[str, ...]:
    """Said where the layout has no sliding window: within the window the function is the same."""
    if model.window is None or model.window >= model.positions:
        return ()
    return (
        f"llama.cpp has no sliding window in this layout: context_length is {model.window} (the window) instead of "
        f"{model.positions}; up to there the model is the same, do not raise it",
    )


def moved(weights: Weights, source: str, name: str, change: Callable[[Array], Array] | None = None) -> Tensor:
    """One tensor of the checkpoint under another name, changed on the way if asked (its shape stays)."""
    make = partial(weights.read, source) if change is None else partial(_changed, weights, source, change)
    return Tensor(name, weights.shapes[source], (source,), make)


def _changed(weights: Weights, source: str, change: Callable[[Array], Array]) -> Array:
    return change(weights.read(source))


def outer_tensors(
    model: Decoder, weights: Weights, norm: Callable[[Array], Array] | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """What stands before and behind the blocks: embeddings and rope factors; final norm and head."""
    before = [moved(weights, "model.embed_tokens.weight", "token_embd.weight")]
    factors = model.ropes[0].factors()
    if factors is not None:
        before.append(Tensor("rope_freqs.weight", factors.shape, (), partial(np.copy, factors)))
    behind = [moved(weights, "model.norm.weight", "output_norm.weight", norm)]
    if not model.tied:
        behind.append(moved(weights, "lm_head.weight", "output.weight"))
    return before, behind


def interleaved(head_dim: int) -> Callable[[Array], Array]:
    """Rows of every head from transformers' order to interleaved pairs.

    transformers turns coordinates j and j + d/2 of a head as a pair, ggml's `NORM` rope 2j and 2j + 1:
    row 2j + h of the result is row h · d/2 + j, for h in {0, 1}. Of weights [heads · d, hidden] and biases alike.
    """

    def permute(tensor: Array) -> Array:
        halves = tensor.reshape(-1, 2, head_dim // 2, *tensor.shape[1:])
        return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(tensor.shape)

    return permute


def first_of(reasons: Sequence[tuple[bool, str]]) -> str:
    """The first reason whose condition holds; empty if none does."""
    return next((reason for holds, reason in reasons if holds), "")
