"""Blocks filled up with zeros to another shape: the same function, more weights.

A head whose columns in o_proj are zero, and a channel whose column in down_proj is zero, add nothing to the residual
stream. KV group j of the result holds group j of the block first and zeros behind it, so that the queries of a group
keep reading their own keys.
"""

from dataclasses import replace

import numpy as np

from tracenas.exporters.gguf.model import BlockShape, Decoder
from tracenas.exporters.gguf.weights import Array, Weights

__all__ = ["STUB_WIDTH", "Fitted", "common_shape", "parameters", "with_stubs"]

STUB_WIDTH = 32
"""MLP width of a block without one: the smallest that q8_0 stores whole."""


def with_stubs(model: Decoder, *, attention: frozenset[int], mlp: frozenset[int]) -> Decoder:
    """The model with one zero head in the named blocks, and zero MLPs of width 32."""
    blocks = (
        BlockShape(b.heads or int(i in attention), b.kv or int(i in attention), b.width or STUB_WIDTH * (i in mlp))
        for i, b in enumerate(model.blocks)
    )
    return replace(model, blocks=tuple(blocks))


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
        self._changed: dict[str, tuple[int, ...]] = {}
        self._blocks: dict[str, int] = {}
        for index in range(len(model.blocks)):
            changed = self._changes(index)
            self._changed |= changed
            self._blocks |= dict.fromkeys(changed, index)
        self.shapes = {**weights.shapes, **self._changed}

    def read(self, name: str) -> Array:
        """The tensor, float32: zeros where the block has no such unit, ones for a norm that was removed."""
        shape = self._changed.get(name)
        if shape is None:
            return self._weights.read(name)
        if name not in self._weights.shapes:
            return np.ones(shape, np.float32) if "norm" in name else np.zeros(shape, np.float32)
        return self._filled(name, self._weights.read(name), shape)

    def _changes(self, index: int) -> dict[str, tuple[int, ...]]:
        """Shapes of what changes in a block, or has to be there although the block has none of it."""
        old, new, model = self._model.blocks[index], self._target.blocks[index], self._model
        at, d = f"model.layers.{index}.", model.head_dim
        rows: dict[str, int] = {}
        columns: dict[str, int] = {}
        norms: dict[str, tuple[int, ...]] = {}
        if (old.heads, old.kv) != (new.heads, new.kv):
            heads = {"q": new.heads, "k": new.kv, "v": new.kv}
            rows |= {f"{at}self_attn.{part}_proj": number * d for part, number in heads.items()}
            columns[f"{at}self_attn.o_proj"] = new.heads * d
        if old.width != new.width:
            rows |= {f"{at}mlp.{part}_proj": new.width for part in ("gate", "up")}
            columns[f"{at}mlp.down_proj"] = new.width
        if new.heads and not old.heads:
            norms |= {f"{at}{norm}.weight": (model.hidden,) for norm in model.norms[0]}
            norms |= {f"{at}self_attn.{part}_norm.weight": (d,) for part in "qk" if model.qk_norm}
        if new.width and not old.width:
            norms |= {f"{at}{norm}.weight": (model.hidden,) for norm in model.norms[1]}
        biases = {f"{name}.bias": (n,) for name, n in rows.items() if f"{name}.bias" in self._weights.shapes}
        matrices = {f"{name}.weight": (n, model.hidden) for name, n in rows.items()}
        return matrices | {f"{name}.weight": (model.hidden, n) for name, n in columns.items()} | biases | norms

    def _filled(self, name: str, tensor: Array, shape: tuple[int, ...]) -> Array:
        """The tensor in the corner of zeros; queries group by group."""
        old, new = (model.blocks[self._blocks[name]] for model in (self._model, self._target))
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
