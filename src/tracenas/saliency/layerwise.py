"""Pruning a model block by block: each block's inputs come from the pruned blocks before it.

In memory at a time: the model, the calibration's hidden states at one depth, and one block's statistics.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from tracenas.families import Block, Projection, SubBlock
from tracenas.models.surgery.ordering import Key
from tracenas.models.surgery.stepping import BlockRunner, watch
from tracenas.paging import Keep, in_memory
from tracenas.saliency.gradients import GradientStore
from tracenas.saliency.linear import linear_module, projections
from tracenas.saliency.masks import Sparsity
from tracenas.saliency.unstructured import Metric, Statistics

__all__ = ["BlockWalk", "LinearLayer", "SparsityPlan", "measured_layers", "statistics"]

_READ_ON_THE_WAY = frozenset({"inputs", "gram"})
"""Statistics that the model is run for."""


@dataclass(frozen=True)
class LinearLayer:
    """One linear layer of the walk."""

    block: int
    sub: SubBlock
    projection: Projection

    @property
    def key(self) -> Key:
        """(block, sub-block name)."""
        return self.block, self.sub.spec.name

    @property
    def source(self) -> str:
        """What it shares with the layers that read the same input."""
        return self.projection.source or self.projection.path

    @property
    def name(self) -> str:
        """`layer 3 mlp.up_proj`."""
        return f"layer {self.block} {self.projection.path}"


@dataclass(frozen=True)
class SparsityPlan:
    """What to prune.

    Args:
        metric: what weights are ranked by.
        target: how sparse.
        compare: `row` or `layer`; not used where the metric solves for weights.
        shares: per (block, sub-block), where they differ; the target's share otherwise.
        seed: of random metrics.
    """

    metric: Metric
    target: Sparsity
    compare: str = "row"
    shares: Mapping[Key, float] = field(default_factory=dict)
    seed: int = 0

    def layer_target(self, layer: LinearLayer) -> Sparsity:
        """The layer's own target."""
        return Sparsity(self.shares[layer.key]) if layer.key in self.shares else self.target


class BlockWalk:
    """The calibration's hidden states on their way through a decoder, block by block.

    Args:
        tokens: int64 [N, L] on the model's device.
        micro_batch: sequences per pass.
        gradients: of the dense model, for metrics that read them.
        seed: of random metrics.
        keep: where the hidden states lie.
    """

    def __init__(
        self,
        model: Any,
        blocks: Sequence[Block],
        tokens: Tensor,
        micro_batch: int,
        *,
        gradients: GradientStore | None = None,
        seed: int = 0,
        keep: Keep = in_memory,
    ) -> None:
        self.model, self.blocks, self.tokens = model, tuple(blocks), tokens
        self.gradients, self.seed = gradients, seed
        self._micro_batch, self._runner = micro_batch, BlockRunner(model, blocks, keep)

    @cached_property
    def _states(self) -> list[Tensor]:
        """What enters the next block."""
        return self._runner.embed(self.tokens, self._micro_batch)

    def module(self, layer: LinearLayer) -> nn.Linear:
        """The module of a layer."""
        return linear_module(self.model, self.blocks[layer.block], layer.projection)

    def layers(self, index: int) -> list[LinearLayer]:
        """The linear layers of a block."""
        return [LinearLayer(i, sub, p) for i, sub, p in projections(self.blocks) if i == index]

    def watch(self, index: int, see: Callable[[LinearLayer, Tensor], None]) -> None:
        """Show the input [tokens, columns] of every linear layer of a block; layers that share one, once."""
        first = {layer.source: layer for layer in reversed(self.layers(index))}
        with ExitStack() as watching:
            for layer in first.values():
                watching.enter_context(watch(self.module(layer), lambda x, _, layer=layer: see(layer, x.float())))  # type: ignore[misc]
            for states in self._states:
                self._runner(index, states)

    def gradient(self, layer: LinearLayer, kind: str) -> Tensor:
        """A gradient statistic of the dense model, on the CPU.

        Raises:
            ValueError: if none were given.
        """
        if self.gradients is None:
            raise ValueError(f"{layer.name}: the metric reads '{kind}', and no gradients were given")
        return self.gradients.get(layer.block, layer.projection.path, kind)

    def prune(self, layer: LinearLayer, mask: Tensor, weight: Tensor | None = None) -> None:
        """Set a layer's weights to zero where the mask is False; `weight` is first put in their place, if given."""
        with torch.no_grad():
            parameter = self.module(layer).weight
            if weight is not None:
                parameter.copy_(weight)
            parameter.masked_fill_(~mask.to(parameter.device), 0.0)

    def advance(self, index: int) -> None:
        """Run the block as it is now; its outputs are the next block's inputs."""
        self._runner.advance(index, self._states)


def statistics(walk: BlockWalk, index: int, needs: frozenset[str]) -> Iterator[tuple[LinearLayer, Statistics]]:
    """Every linear layer of a block with what a metric needs of it, on the walk's current inputs."""
    squares: dict[str, Tensor] = {}

    def see(layer: LinearLayer, x: Tensor) -> None:
        total = x.T @ x if "gram" in needs else x.square().sum(dim=0)
        squares[layer.source] = squares[layer.source] + total if layer.source in squares else total

    if needs & _READ_ON_THE_WAY:
        walk.watch(index, see)
    for number, layer in enumerate(walk.layers(index)):
        module = walk.module(layer)
        total = squares.get(layer.source)
        mean = None if total is None else total / walk.tokens.numel()
        gradients = {k: walk.gradient(layer, k).to(module.weight.device) for k in needs if k.startswith("gradient")}
        yield (
            layer,
            Statistics(
                weight=module.weight.detach().float(),
                generator=torch.Generator().manual_seed((walk.seed * 1_000_003 + index) * 10_007 + number),
                tokens=walk.tokens.shape[1],
                input_rms=None if mean is None else (mean.diagonal() if mean.ndim == 2 else mean).sqrt(),
                gram=mean if "gram" in needs else None,
                **gradients,
            ),
        )


def measured_layers(
    walk: BlockWalk, needs: frozenset[str], on_block: Callable[[int], None] | None = None
) -> Iterator[tuple[LinearLayer, Statistics]]:
    """Every linear layer of the model with what a metric needs of it, in order.

    All statistics of a block rest on its inputs before any of its layers is pruned, as published; what is pruned in
    the meantime, the blocks behind it see.

    Args:
        on_block: called with a block's index when it is done.
    """
    last = len(walk.blocks) - 1
    for index in range(len(walk.blocks)):
        yield from statistics(walk, index, needs)
        if needs & _READ_ON_THE_WAY and index < last:
            walk.advance(index)
        if on_block is not None:
            on_block(index)
