"""The families' own architectures of llama.cpp: all blocks alike, none without attention or MLP.

Gemma's norms multiply by 1 + w: the file holds 1 + w. Gemma 2 and 3 scale scores by query_pre_attn_scalar^(-1/2),
llama.cpp by head_dim^(-1/2): where these differ, q's weights (with q's norm: the norm's) carry the quotient.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tracenas.exporters.gguf.layouts.layout import (
    ATTENTION_NAMES,
    MLP_NAMES,
    Draft,
    Tensor,
    common_metadata,
    first_of,
    interleaved,
    moved,
    outer_tensors,
    window_note,
)
from tracenas.exporters.gguf.model import Decoder
from tracenas.exporters.gguf.weights import Array, Weights

__all__ = ["ARCHITECTURES", "STOCK", "Architecture"]

_NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
_QK = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
_SANDWICH = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
# llama.cpp takes these for the 27B models, which scale scores by (hidden / heads)^(-1/2).
_DEPTH_27B = {"gemma2": 46, "gemma3": 62}


@dataclass(frozen=True)
class Architecture:
    """What llama.cpp's architecture of a family has.

    Args:
        interleaved: whether q and k are permuted to interleaved pairs.
        biases: which projections may have one.
        unit_norms: whether norms multiply by 1 + w.
        windows: whether it has sliding windows, per block.
        full_width: whether heads · head_dim must be the hidden width.
        tied: whether the head must be the embeddings.
    """

    name: str
    norms: dict[str, str] = field(default_factory=lambda: dict(_NORMS))
    interleaved: bool = False
    biases: frozenset[str] = frozenset()
    unit_norms: bool = False
    windows: bool = False
    full_width: bool = False
    tied: bool = False
    factors: bool = False
    activation: str = "silu"


_QKV = frozenset("qkv")
_LLAMA = Architecture("llama", interleaved=True, biases=frozenset({*"qkvo", "mlp"}), factors=True)
ARCHITECTURES: dict[str, Architecture] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": Architecture("qwen2", biases=_QKV, full_width=True),
    "qwen3": Architecture("qwen3", {**_NORMS, **_QK}, biases=_QKV),
    "gemma": Architecture("gemma", biases=_QKV, unit_norms=True, tied=True, activation="gelu_pytorch_tanh"),
    "gemma2": Architecture(
        "gemma2", _SANDWICH, biases=_QKV, unit_norms=True, windows=True, tied=True, activation="gelu_pytorch_tanh"
    ),
    "gemma3_text": Architecture(
        "gemma3", {**_SANDWICH, **_QK}, biases=_QKV, unit_norms=True, windows=True, activation="gelu_pytorch_tanh"
    ),
}


class Stock:
    """A model whose blocks are all alike, in the architecture of its own family."""

    name = "stock"

    def objection(self, model: Decoder) -> str:
        """Blocks that differ, and what the family's architecture in llama.cpp does not have."""
        if not model.uniform:
            return "its blocks are all alike, the model's are not (search --strategy uniform finds such)"
        return self.own_objection(model)

    def own_objection(self, model: Decoder) -> str:
        """The same once all blocks are alike."""
        arch, shape = ARCHITECTURES[model.family], model.blocks[0]
        extra = model.biases - arch.biases
        full = shape.heads * model.head_dim == model.hidden
        config = model.config
        uncapped = arch.name == "gemma2" and not (config.attn_logit_softcapping and config.final_logit_softcapping)
        return first_of(
            (
                (bool(extra), f"llama.cpp's {arch.name} has no bias of {', '.join(sorted(extra))}"),
                (arch.full_width and not full, f"llama.cpp's {arch.name} wants heads times head_dim = {model.hidden}"),
                (arch.tied and not model.tied, f"llama.cpp's {arch.name} has the embeddings for a head"),
                (
                    model.activation != arch.activation,
                    f"llama.cpp's {arch.name} has {arch.activation}, the model {model.activation}",
                ),
                (
                    not arch.factors and model.ropes[0].factors() is not None,
                    f"{arch.name} has no rope factors (llama3)",
                ),
                (uncapped, "llama.cpp's gemma2 caps scores and logits always"),
                (bool(getattr(config, "use_bidirectional_attention", False)), "attention is causal in llama.cpp"),
            )
        )

    def draft(self, model: Decoder, weights: Weights) -> Draft:
        """One shape for all blocks."""
        arch = ARCHITECTURES[model.family]
        norm = _one_more if arch.unit_norms else None
        before, behind = outer_tensors(model, weights, norm)
        inner = [t for i in range(len(model.blocks)) for t in _block(arch, model, weights, i)]
        metadata = common_metadata(arch.name, model, per_block=False)
        if arch.windows:
            metadata |= _windowed(arch, model)
        return Draft(arch.name, metadata, (*before, *inner, *behind), () if arch.windows else window_note(model))


def _block(arch: Architecture, model: Decoder, weights: Weights, index: int) -> list[Tensor]:
    at, to = f"model.layers.{index}.", f"blk.{index}."
    scale = _score_scale(arch, model)
    found = []
    for source, name in {**arch.norms, **ATTENTION_NAMES, **MLP_NAMES}.items():
        change: Callable[[Array], Array] | None = None
        if name in ("attn_q", "attn_k") and arch.interleaved:
            change = interleaved(model.head_dim)
        elif source in arch.norms and arch.unit_norms:
            change = _one_more
        if scale != 1.0 and name == ("attn_q_norm" if model.qk_norm else "attn_q"):
            change = _then_times(change, scale)
        for kind in ("weight", "bias"):
            if f"{at}{source}.{kind}" in weights.shapes:
                found.append(moved(weights, f"{at}{source}.{kind}", f"{to}{name}.{kind}", change))
    return found


def _score_scale(arch: Architecture, model: Decoder) -> float:
    """The family's scale of scores over the one that llama.cpp applies."""
    scalar = getattr(model.config, "query_pre_attn_scalar", None)
    if scalar is None or arch.name not in _DEPTH_27B:
        return 1.0
    large = len(model.blocks) == _DEPTH_27B[arch.name]
    theirs = model.hidden // model.blocks[0].heads if large else model.head_dim
    return float((theirs / float(scalar)) ** 0.5)


def _windowed(arch: Architecture, model: Decoder) -> dict[str, Any]:
    """Which blocks have a window, and the rotary embedding of those."""
    found: dict[str, Any] = {f"{arch.name}.context_length": model.positions}
    if model.window is not None:
        found[f"{arch.name}.attention.sliding_window"] = model.window
        found[f"{arch.name}.attention.sliding_window_pattern"] = [w is not None for w in model.windows]
        found[f"{arch.name}.rope.freq_base_swa"] = model.ropes[1].base
    if arch.name == "gemma2":
        found["gemma2.attn_logit_softcapping"] = float(model.config.attn_logit_softcapping)
    if cap := getattr(model.config, "final_logit_softcapping", None):
        found[f"{arch.name}.final_logit_softcapping"] = float(cap)
    return found


def _one_more(weight: Array) -> Array:
    return weight + 1


def _then_times(change: Callable[[Array], Array] | None, factor: float) -> Callable[[Array], Array]:
    return lambda tensor: (tensor if change is None else change(tensor)) * factor


STOCK = Stock()
