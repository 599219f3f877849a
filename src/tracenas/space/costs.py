"""Exact counts of an architecture: parameters, FLOPs and KV-cache, equal to the materialised model's."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tracenas.space.architecture import Architecture
from tracenas.space.sub_block import LayerSpec, SubBlockSpec

__all__ = ["Cost", "all_parameters", "flops_per_token", "kv_cache_per_token", "parameters", "sub_blocks"]

SubBlockCost = Callable[[SubBlockSpec, int], int]
"""(sub-block, kept units) → what it costs; 0 where it is bypassed."""


@dataclass(frozen=True)
class Cost:
    """Something that an architecture costs and that adds up over its sub-blocks.

    Args:
        name: as budgets call it.
        unit: what is counted, for messages.
        outside: what no architecture removes.
        of: what a sub-block adds at a width, never less at a larger one.
        per: how many of what is counted are one of `unit`: 10⁶ where nanoseconds are counted and milliseconds said.
    """

    name: str
    unit: str
    outside: int
    of: SubBlockCost
    per: int = 1

    def total(self, layers: Sequence[LayerSpec], arch: Architecture) -> int:
        """Of an architecture."""
        return self.outside + sum(self.of(spec, kept) for _, spec, kept in sub_blocks(layers, arch))

    def plain(self, cost: int) -> int | float:
        """What is counted, in `unit`: a whole number, or one with a fraction where it is counted in parts of it."""
        return cost if self.per == 1 else cost / self.per

    def number(self, cost: int) -> str:
        """`plain`, for messages."""
        return f"{cost:,}" if self.per == 1 else f"{cost / self.per:,.3f}"

    def said(self, cost: int) -> str:
        """With its unit."""
        return f"{self.number(cost)} {self.unit}"


def all_parameters(outside: int) -> Cost:
    """The parameters: `outside` and every sub-block's."""
    return Cost("params", "parameters", outside, SubBlockSpec.parameters)


def sub_blocks(layers: Sequence[LayerSpec], arch: Architecture) -> Iterator[tuple[int, SubBlockSpec, int]]:
    """`(layer, spec, kept units)` for every sub-block, in order."""
    for index, (spec_layer, layer) in enumerate(zip(layers, arch.layers, strict=True)):
        for spec, (_, kept) in zip(spec_layer.sub_blocks, layer.kept, strict=True):
            yield index, spec, kept


def parameters(layers: Sequence[LayerSpec], outside: int, arch: Architecture) -> int:
    """All parameters: `outside` (embeddings, head, final norm; tied weights once) plus every sub-block's."""
    return outside + sum(spec.parameters(kept) for _, spec, kept in sub_blocks(layers, arch))


def flops_per_token(layers: Sequence[LayerSpec], head_weights: int, arch: Architecture, context: int) -> float:
    """Forward FLOPs per token, averaged over the positions of a causal context of `context` tokens.

    2 per multiply–add; 2 · `head_weights` for the language-model head; norms, activations and the softmax are
    left out.
    """
    return 2.0 * head_weights + sum(spec.flops(kept, context) for _, spec, kept in sub_blocks(layers, arch))


def kv_cache_per_token(layers: Sequence[LayerSpec], arch: Architecture) -> int:
    """KV-cache elements per token (K and V); multiply by the element size for bytes."""
    return sum(spec.cache(kept) for _, spec, kept in sub_blocks(layers, arch))
