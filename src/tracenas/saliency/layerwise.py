"""Pruning a model block by block: each block's inputs come from the pruned blocks before it.

In memory at a time: the model, the calibration's hidden states at one depth, and one block's statistics.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tracenas.families import Block, Projection, SubBlock
from tracenas.models.functionals.loss import hidden_states
from tracenas.models.surgery.ordering import Key
from tracenas.models.surgery.supernet import bypass
from tracenas.saliency.gradients import GradientStore
from tracenas.saliency.linear import linear_of, projections
from tracenas.saliency.masks import Target
from tracenas.saliency.unstructured import Metric, Statistics

__all__ = ["BlockWalk", "Layer", "Plan", "prune_blocks", "statistics"]


@dataclass(frozen=True)
class Layer:
    """One linear layer of the walk."""

    block: int
    sub: SubBlock
    projection: Projection

    @property
    def key(self) -> Key:
        """(block, sub-block name)."""
        return self.block, self.sub.spec.name

    @property
    def name(self) -> str:
        """`layer 3 mlp.up_proj`."""
        return f"layer {self.block} {self.projection.path}"


@dataclass(frozen=True)
class Plan:
    """What to prune.

    Args:
        metric: what weights are ranked by.
        target: how sparse.
        compare: `row` or `layer`; not used where the metric solves for weights.
        shares: per (block, sub-block), where they differ; the target's share otherwise.
        seed: of random metrics.
    """

    metric: Metric
    target: Target
    compare: str = "row"
    shares: Mapping[Key, float] = field(default_factory=dict)
    seed: int = 0

    def target_of(self, layer: Layer) -> Target:
        """The layer's own target."""
        return Target(self.shares[layer.key]) if layer.key in self.shares else self.target


class _Stop(Exception):
    """The block that was asked for has run."""


class BlockWalk:
    """Runs one block of a model at a time over the calibration.

    The model's own forward builds masks and positions; the blocks before the wanted one are bypassed, and its
    input is replaced by the hidden states that the walk has kept. Where blocks stand in several stacks
    (encoder and decoder), nothing is kept and the model runs from its beginning.

    Args:
        tokens: int64 [N, L] on the model's device.
        micro_batch: sequences per pass.
    """

    def __init__(self, model: Any, blocks: Sequence[Block], tokens: Tensor, micro_batch: int) -> None:
        self.model, self.blocks = model, tuple(blocks)
        self.batches = tokens.split(micro_batch)
        self.tokens = int(tokens.shape[1])
        self._keeps = len({b.stack for b in blocks}) == 1
        self._states: list[Tensor] | None = None

    def layers(self, index: int) -> list[Layer]:
        """The linear layers of a block."""
        return [Layer(i, sub, p) for i, sub, p in projections(self.blocks) if i == index]

    def watch(self, index: int, see: Callable[[Layer, Tensor], None]) -> None:
        """Show the input [tokens, columns] of every linear layer of a block; layers that share one, once."""
        handles, seen = [], set()
        for layer in self.layers(index):
            source = layer.projection.source or layer.projection.path
            if source not in seen:
                seen.add(source)
                module = linear_of(self.model, self.blocks[index], layer.projection)
                handles.append(module.register_forward_pre_hook(_show(layer, see)))
        try:
            self._run(index, lambda place, output: None)
        finally:
            for handle in handles:
                handle.remove()

    def advance(self, index: int) -> None:
        """Run the block as it is now; its outputs are the next block's inputs."""
        if not self._keeps:
            return
        outputs: list[Tensor] = []
        self._run(index, lambda place, output: outputs.append(output))
        self._states = outputs

    def _run(self, index: int, take: Callable[[int, Tensor], None]) -> None:
        with ExitStack() as undo, torch.no_grad():
            for other in range(index if self._keeps else 0):
                bypass(self.model, self.blocks[other], None, undo)
            module = self.model.get_submodule(self.blocks[index].path)
            place = 0

            def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
                if self._states is None or not self._keeps or index == 0:
                    return None
                if args:
                    return (self._states[place], *args[1:]), kwargs
                return args, {**kwargs, "hidden_states": self._states[place]}

            def after(_: Any, args: Any, output: Any) -> None:
                take(place, (output[0] if isinstance(output, tuple) else output).detach())
                raise _Stop

            undo.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            undo.callback(module.register_forward_hook(after).remove)
            for batch in self.batches:
                try:
                    hidden_states(self.model, batch)
                except _Stop:
                    place += 1


def _show(layer: Layer, see: Callable[[Layer, Tensor], None]) -> Any:
    def hook(_: Any, inputs: tuple[Tensor, ...]) -> None:
        see(layer, inputs[0].detach().reshape(-1, inputs[0].shape[-1]).float())

    return hook


def statistics(
    walk: BlockWalk, index: int, needs: frozenset[str], *, gradients: GradientStore | None = None, seed: int = 0
) -> Iterator[tuple[Layer, Statistics]]:
    """Every linear layer of a block with what a metric needs of it, on the walk's current inputs."""
    squares: dict[str, Tensor] = {}
    count = sum(b.numel() for b in walk.batches)

    def see(layer: Layer, x: Tensor) -> None:
        source = layer.projection.source or layer.projection.path
        total = x.T @ x if "gram" in needs else x.square().sum(dim=0)
        squares[source] = squares[source] + total if source in squares else total

    if needs & {"inputs", "gram"}:
        walk.watch(index, see)
    for number, layer in enumerate(walk.layers(index)):
        module = linear_of(walk.model, walk.blocks[index], layer.projection)
        mean = squares.get(layer.projection.source or layer.projection.path)
        mean = None if mean is None else mean / count
        own = {k: _stored(gradients, layer, k).to(module.weight.device) for k in needs if k.startswith("gradient")}
        yield (
            layer,
            Statistics(
                weight=module.weight.detach().float(),
                generator=torch.Generator().manual_seed((seed * 1_000_003 + index) * 10_007 + number),
                tokens=walk.tokens,
                input_rms=None if mean is None else (mean.diagonal() if mean.ndim == 2 else mean).sqrt(),
                gram=mean if "gram" in needs else None,
                **own,
            ),
        )


def _stored(gradients: GradientStore | None, layer: Layer, kind: str) -> Tensor:
    if gradients is None:
        raise ValueError(f"{layer.name}: the metric reads '{kind}', and no gradients were given")
    return gradients.get(layer.block, layer.projection.path, kind)


def prune_blocks(
    walk: BlockWalk,
    plan: Plan,
    decide: Callable[[Layer, Statistics], tuple[Tensor | None, Tensor]],
    *,
    gradients: GradientStore | None = None,
    on_block: Callable[[int], None] | None = None,
) -> None:
    """Prune the model in place, block by block.

    Args:
        decide: from a layer and its statistics to (new weight or None, where weights stay).
        on_block: called with a block's index when it is done.
    """
    last = len(walk.blocks) - 1
    reads_inputs = bool(plan.metric.needs & {"inputs", "gram"})
    for index in range(len(walk.blocks)):
        # All decisions of a block rest on its inputs before any of its layers is pruned, as published.
        for layer, found in statistics(walk, index, plan.metric.needs, gradients=gradients, seed=plan.seed):
            weight, stays = decide(layer, found)
            module = linear_of(walk.model, walk.blocks[index], layer.projection)
            with torch.no_grad():
                if weight is not None:
                    module.weight.copy_(weight)
                module.weight.masked_fill_(~stays, 0.0)
        if reads_inputs and index < last:
            walk.advance(index)
        if on_block is not None:
            on_block(index)
