"""Blocks filled up with zeros to another shape: the same function, more weights.

A head whose columns in o_proj are zero, and a channel whose column in down_proj is zero, add nothing to the residual
stream. KV group j of the result holds group j of the block first and zeros behind it, so that the queries of a group
keep reading their own keys.
"""

from collections.abc import Mapping

import numpy as np

from tracenas.exporters.gguf.model import BlockShape, Decoder
from tracenas.exporters.gguf.weights import Array, Weights

__all__ = ["STUB_WIDTH", "Fitted", "common_shape", "parameters", "with_stubs"]

STUB_WIDTH = 32
"""MLP width of a block without one: the smallest that q8_0 stores whole."""
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_NORMS = {
    "attention": ("input_layernorm",),
    "mlp": ("post_attention_layernorm",),
}
_SANDWICH = {
    "attention": ("input_layernorm", "post_attention_layernorm"),
    "mlp": ("pre_feedforward_layernorm", "post_feedforward_layernorm"),
}


def with_stubs(model: Decoder, *, attention: frozenset[int], mlp: frozenset[int]) -> Decoder:
    """The model with one zero head in the named blocks, and zero MLPs of width 32."""
    return model.with_blocks(
        tuple(
            BlockShape(b.heads or int(i in attention), b.kv or int(i in attention), b.width or STUB_WIDTH * (i in mlp))
            for i, b in enumerate(model.blocks)
        )
    )


def common_shape(model: Decoder) -> BlockShape:
    """The smallest shape that every block fits in: KV heads, queries per KV head and width of the largest each."""
    kv = max((b.kv for b in model.blocks), default=0) or 1
    group = max((b.heads // b.kv for b in model.blocks if b.kv), default=1)
    return BlockShape(kv * group, kv, max(b.width for b in model.blocks) or STUB_WIDTH)


def parameters(model: Decoder) -> int:
    """Parameters of the blocks' matrices."""
    each = (2 * (b.heads + b.kv) * model.head_dim + 3 * b.width for b in model.blocks)
    return model.hidden * sum(each)


class Fitted:
    """The tensors of `model`, filled up to the shapes of `target`'s blocks."""

    def __init__(self, weights: Weights, model: Decoder, target: Decoder) -> None:
        self._weights, self._model, self._target = weights, model, target
        self._made: dict[str, tuple[int, ...]] = {}
        self._places: dict[str, int] = {}
        for i, (old, new) in enumerate(zip(model.blocks, target.blocks, strict=True)):
            if old != new:
                for name, shape in self._tensors(i, old, new).items():
                    self._made[name], self._places[name] = shape, i

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor."""
        return {**self._weights.shapes, **self._made}

    def read(self, name: str) -> Array:
        """The tensor, float32: zeros where the block has no such unit, ones for a norm that was removed."""
        if name not in self._made:
            return self._weights.read(name)
        shape = self._made[name]
        if name not in self._weights.shapes:
            return np.ones(shape, np.float32) if "norm" in name else np.zeros(shape, np.float32)
        return self._filled(name, self._weights.read(name), shape)

    def _tensors(self, index: int, old: BlockShape, new: BlockShape) -> dict[str, tuple[int, ...]]:
        """What of a block changes, or has to be there although the block has none of it."""
        at, d, hidden = f"model.layers.{index}.", self._model.head_dim, self._model.hidden
        norms = _SANDWICH if self._model.family in ("gemma2", "gemma3_text") else _NORMS
        found: dict[str, tuple[int, ...]] = {}
        if (old.heads, old.kv) != (new.heads, new.kv):
            rows = {"q_proj": new.heads * d, "k_proj": new.kv * d, "v_proj": new.kv * d}
            for part in _ATTENTION:
                shape = (rows[part], hidden) if part in rows else (hidden, new.heads * d)
                found[f"{at}self_attn.{part}.weight"] = shape
                if part in rows and f"{at}self_attn.{part}.bias" in self._weights.shapes:
                    found[f"{at}self_attn.{part}.bias"] = (rows[part],)
            if not old.heads:
                found |= {f"{at}{norm}.weight": (hidden,) for norm in norms["attention"]}
                if self._model.qk_norm:
                    found |= {f"{at}self_attn.{part}_norm.weight": (d,) for part in "qk"}
        if old.width != new.width:
            for part in ("gate_proj", "up_proj", "down_proj"):
                shape = (hidden, new.width) if part == "down_proj" else (new.width, hidden)
                found[f"{at}mlp.{part}.weight"] = shape
                if part != "down_proj" and f"{at}mlp.{part}.bias" in self._weights.shapes:
                    found[f"{at}mlp.{part}.bias"] = (new.width,)
            if not old.width:
                found |= {f"{at}{norm}.weight": (hidden,) for norm in norms["mlp"]}
        return found

    def _filled(self, name: str, tensor: Array, shape: tuple[int, ...]) -> Array:
        """The tensor in the corner of zeros; queries group by group."""
        index = self._places[name]
        old, new = self._model.blocks[index], self._target.blocks[index]
        if ".self_attn.q_proj." in name or ".self_attn.o_proj." in name:
            axis = 1 if ".o_proj." in name else 0
            d = self._model.head_dim
            moved = np.moveaxis(tensor, axis, 0).reshape(old.kv, old.heads // old.kv, d, -1)
            out = np.zeros((new.kv, new.heads // new.kv, d, moved.shape[-1]), np.float32)
            out[: old.kv, : old.heads // old.kv] = moved
            flat = out.reshape(new.heads * d, *([] if tensor.ndim == 1 else [moved.shape[-1]]))
            return np.ascontiguousarray(np.moveaxis(flat, 0, axis))
        filled = np.zeros(shape, np.float32)
        filled[tuple(slice(n) for n in tensor.shape)] = tensor
        return filled
