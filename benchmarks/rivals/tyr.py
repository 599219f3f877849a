"""Týr-the-Pruner (Li et al., arXiv:2503.09657): every output projection at several widths, then their best mixture.

Local stage (§3.2): for every sub-block in forward order one elimination on the second moment of its inputs, and the
refitted weights of every level of width. The inputs are those that the levels before it give in expectation (§3.3,
expectation error accumulation): an output is linear in its projection, so the mean over levels of the outputs is the
output of the mean W̄ of the levels' weights, zeros where a level has no column.

Global stage (§3.4): evolution of one level per sub-block. A mutation moves one sub-block a level up and another of its
kind as many units down, so that the budget stays met; the fitness is the divergence from the dense model, on growing
text. Rounds repeat both stages around what was found, with finer levels (§3.5).
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rivals.osscar import Layer, greedy, layer_of
from tracenas.families import Block, Key, SubBlock
from tracenas.models.surgery.replacing import replace_parameter
from tracenas.models.surgery.stepping import BlockRunner, Stop, watch
from tracenas.refits.gram_sum import GramSum
from tracenas.refits.ridge import fit_removed

__all__ = ["Levels", "Widths", "levels_around", "local_stage", "mutated"]

Widths = tuple[tuple[Key, int], ...]
"""A candidate: kept units of every sub-block, in forward order."""


@dataclass(frozen=True)
class Levels:
    """A sub-block at several widths.

    Args:
        place: int64 [units]: of every unit, how many go before it.
        outputs: its output projection by kept units, [D, kept columns]; units stand best first, group by group.
    """

    place: Tensor
    outputs: Mapping[int, Tensor]


def levels_around(sub: SubBlock, width: int, step: int, reach: int) -> list[int]:
    """Widths around one: `reach` steps of `step` units to both sides, those that the sub-block can have, ascending."""
    choices = set(sub.spec.choices())
    return sorted(w for w in (width + i * step for i in range(-reach, reach + 1)) if w in choices)


def local_stage(
    model: Any,
    blocks: Sequence[Block],
    tokens: Tensor,
    micro_batch: int,
    widths: Mapping[Key, Sequence[int]],
    penalty: Callable[[Tensor], float | Tensor],
) -> dict[Key, Levels]:
    """Every sub-block at its levels, the model as it was afterwards.

    Args:
        model: dense, its units in the base's order.
        tokens: int64 [N, L] of the statistics.
        widths: levels of every sub-block, ascending.
        penalty: what is added to the diagonal of a Gram matrix.
    """
    runner = BlockRunner(model, blocks)
    stream = runner.embed(tokens, micro_batch)
    found: dict[Key, Levels] = {}
    with ExitStack() as undo:
        for index, block in enumerate(blocks):
            for sub in (s for s in block.sub_blocks if s.spec.units):
                key = index, sub.spec.name
                module = model.get_submodule(f"{block.path}.{sub.output}")
                gram = _gram(runner, index, module, stream)
                layer = layer_of(sub, gram, module.weight.detach(), penalty)
                found[key], mean = _levels(layer, sub, widths[key], module.weight.dtype)
                replace_parameter(module, "weight", mean, undo)
            runner.advance(index, stream)
    return found


def _gram(runner: BlockRunner, index: int, module: torch.nn.Module, stream: Sequence[Tensor]) -> Tensor:
    """XᵀX of an output projection's inputs, the block before it as it is now."""
    total = GramSum(int(module.in_features), stream[0].device)

    def see(x: Tensor, _: Tensor) -> None:
        total.add(x.to(torch.promote_types(x.dtype, torch.float32)))
        raise Stop

    with watch(module, see):
        for hidden in stream:
            with suppress(Stop):
                runner(index, hidden)
    return total.total()


def _levels(layer: Layer, sub: SubBlock, widths: Sequence[int], dtype: torch.dtype) -> tuple[Levels, Tensor]:
    """A sub-block at its levels, and the mean of their weights, [D, n]."""
    place = torch.empty(layer.units, dtype=torch.int64)
    place[greedy(layer, sub.spec.choices())] = torch.arange(layer.units)
    best = place.view(layer.groups, -1).argsort(1, descending=True)
    best += torch.arange(layer.groups)[:, None] * best.shape[1]
    outputs, total = {}, torch.zeros_like(layer.weight)
    for width in widths:
        kept = layer.columns[best[:, : width // layer.groups].flatten()].flatten()
        fitted = fit_removed(layer.moment, layer.weight, kept, 0.0) if width < layer.units else layer.weight[:, kept]
        total[:, kept] += fitted
        outputs[width] = fitted.to(dtype)
    return Levels(place, outputs), (total / len(widths)).to(dtype)


def mutated(parent: Widths, levels: Mapping[Key, Sequence[int]], rng: np.random.Generator) -> Widths:
    """The parent with one sub-block a level wider, and another of its kind narrower by as many units.

    The parent itself where no two can trade.
    """
    widths = dict(parent)
    ups = {key: _next(levels[key], width) for key, width in widths.items()}
    trades = []
    for wider, up in ups.items():
        for narrower in widths if up is not None else ():
            down = widths[narrower] - (up - widths[wider])
            if narrower != wider and narrower[1] == wider[1] and down in levels[narrower]:
                trades.append({wider: up, narrower: down})
    if not trades:
        return parent
    chosen = trades[int(rng.integers(len(trades)))]
    return tuple((key, chosen.get(key, width)) for key, width in parent)


def _next(levels: Sequence[int], width: int) -> int | None:
    """The level above a width."""
    return next((level for level in levels if level > width), None)
