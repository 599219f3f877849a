"""Measuring a sensitivity table: Fisher matrices from a few windows, then one forward pass in which blocks are swept.

The Fisher matrices wait on a shelf (a temporary file for models in host memory) until the forward pass, which makes
the second moments of one block at a time, has come to their block. Sweeps are independent of one another: several
threads work on them while the next block's moments are made.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tracenas.errors import UserError
from tracenas.families import Block, SubBlock
from tracenas.models.functionals.loss import predicted_tokens
from tracenas.models.surgery.ordering import Key, dense_weight, weight_holder
from tracenas.models.surgery.streaming import on_device
from tracenas.paging import Keep, in_memory
from tracenas.refits.dense_stream import StreamRecorder
from tracenas.saliency.backwards import Shelf
from tracenas.saliency.elimination import Sweep
from tracenas.saliency.sensitivity import fisher_tokens
from tracenas.saliency.sensitivity.fisher import fisher_matrices
from tracenas.saliency.sensitivity.held_out import held_out_rises
from tracenas.saliency.sensitivity.moments import Moments, input_moments
from tracenas.saliency.sensitivity.rises import RIDGE, predicted_rises
from tracenas.saliency.sensitivity.table import SensitivityTable, WidthCosts

__all__ = ["measure_sensitivity"]


def measure_sensitivity(
    model: Any,
    blocks: Sequence[Block],
    tokens: Tensor,
    micro_batch: int,
    generator: torch.Generator,
    *,
    ridge: float = RIDGE,
    gradients: int | None = None,
    put: Callable[[Key, Tensor], None] | None = None,
    stream: StreamRecorder | None = None,
    keep: Keep = in_memory,
    sweepers: int = 1,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> SensitivityTable:
    """Order of units and predicted rise of the loss at every width, of every sub-block that has units.

    Args:
        model: a frozen causal language model or encoder–decoder, its units in the base's order.
        blocks: where its units live, and at which widths.
        tokens: int64 [N, L] on the model's device; the Fisher matrices take the first of the windows.
        micro_batch: sequences per pass.
        generator: what labels are drawn by.
        ridge: λ of every channel, relative to its second moment.
        put: is given G of every sub-block that is not of experts, float64 [n, n].
        stream: records the hidden states of the pass, of a decoder.
        keep: where the matrices of a block and the hidden states lie.
        sweepers: sub-blocks that are swept at a time; what is found does not depend on it.
        gradients: as many tokens as the windows for the Fisher matrices have at least; None: `fisher_tokens`.
        report: told how many steps of how many are done: of every sub-block the Fisher matrix, then the sweep.

    Raises:
        UserError: for too few tokens, and if an activation or a gradient is not finite.
    """
    windows = _gradient_windows(blocks, tokens, gradients)
    _check_tokens(model, blocks, tokens, windows)
    shelf = Shelf(tokens.device)
    total = 2 * sum(bool(sub.spec.units) for block in blocks for sub in block.sub_blocks)
    try:
        matrices = fisher_matrices(model, blocks, tokens[:windows], min(micro_batch, windows), generator)
        places, done = {}, 0
        for key, metric in matrices:
            places[key] = shelf.put(metric)
            report(done := done + 1, total)

        def sweeps() -> Iterator[tuple[Key, Callable[[], WidthCosts]]]:
            for key, moments in input_moments(model, blocks, tokens, micro_batch, keep, stream):
                sub = next(s for s in blocks[key[0]].sub_blocks if s.spec.name == key[1])
                if put is not None and not sub.stacked:
                    put(key, moments[0].second)
                yield key, partial(_costs, model, blocks[key[0]], sub, moments, shelf.get(places[key]), ridge)
                del moments  # before the next one's are made

        costs: dict[Key, WidthCosts] = {}
        for key, cost in _collected(sweeps(), sweepers):
            costs[key] = cost
            report(done := done + 1, total)
    finally:
        shelf.close()
    return SensitivityTable(costs)


def _collected(
    sweeps: Iterable[tuple[Key, Callable[[], WidthCosts]]], sweepers: int
) -> Iterator[tuple[Key, WidthCosts]]:
    """What sweeps find, in their order; they begin as they come, and no more wait than are at work."""
    if sweepers == 1:
        for key, work in sweeps:
            yield key, work()
            del work  # and its matrices
        return
    with ThreadPoolExecutor(sweepers) as pool:
        begun: deque[tuple[Key, Future[WidthCosts]]] = deque()
        for key, work in sweeps:
            begun.append((key, pool.submit(work)))
            del work
            if len(begun) > sweepers:
                first, found = begun.popleft()
                yield first, found.result()
        for first, found in begun:
            yield first, found.result()


def _gradient_windows(blocks: Sequence[Block], tokens: Tensor, gradients: int | None) -> int:
    """Windows that hold the tokens which the Fisher matrices are taken on."""
    return min(len(tokens), -(-(gradients or fisher_tokens(tokens.numel(), blocks)) // tokens.shape[1]))


def _check_tokens(model: Any, blocks: Sequence[Block], tokens: Tensor, windows: int) -> None:
    """Refuse text on which the matrices would be of too low a rank to say anything, or that has no two halves."""
    projections = [s.output_projection for b in blocks for s in b.sub_blocks if s.spec.units]
    length = tokens.shape[1]
    predicted = predicted_tokens(model, length)
    wide, hidden = max(p.columns for p in projections), max(p.rows for p in projections)
    for what, count, least, each in (
        ("second moments of the widest output projection", len(tokens) * predicted, wide, predicted),
        ("Fisher matrices of its outputs", windows * predicted, hidden, predicted),
    ):
        if count < least:
            raise UserError(
                f"{count:,} tokens are too few for the {what}, {least:,} × {least:,}: "
                f"{max(2, -(-least // each)):,} sequences of {length} are the least"
            )
    if len(tokens) < 2:
        raise UserError("one sequence has no halves, of which one tries what is fitted on the other: 2 are the least")


def _costs(
    model: Any, block: Block, sub: SubBlock, moments: Sequence[Moments], metric: Tensor, ridge: float
) -> WidthCosts:
    """One sub-block, from its sweep, or the sweeps of its experts, which lose as many channels each."""
    projection = sub.output_projection
    module, _ = weight_holder(model, block, projection)
    weight = dense_weight(model, block, projection)
    parts = len(moments)
    units, widths = sub.spec.units // parts, [w // parts for w in sub.spec.choices()]
    owner = torch.from_numpy(projection.matrix_unit_ids(1, units))
    groups = 1 if sub.stacked else sub.groups
    sweeps = []
    for place, one in enumerate(moments):
        own = (weight[place], metric[place]) if sub.stacked else (weight, metric)
        swept = predicted_rises(one.second, *own, owner, widths, groups=groups, ridge=ridge)
        sweeps.append(held_out_rises(swept, one, *own, owner, widths, ridge=ridge))
    bypass = sum(s.bypass for s in sweeps)
    if projection.bias:
        bias = on_device(model, module.get_parameter("bias").detach())
        bypass += _constant(weight, bias, moments[0], metric)
    return _joined(sweeps, sub.spec.choices(), bypass)


def _constant(weight: Tensor, bias: Tensor, moments: Moments, metric: Tensor) -> float:
    """What a bias adds to the cost of a bypass: tr Γ(2 W E[x] bᵀ + b bᵀ) / 2."""
    wide = bias.double()
    product = metric.double() @ wide
    return float(product @ (weight.double() @ moments.mean)) + 0.5 * float(product @ wide)


def _joined(sweeps: Sequence[Sweep], widths: Sequence[int], bypass: float) -> WidthCosts:
    """The costs of sub-blocks of several experts: those of equal places in their orders add up."""
    rise = torch.stack([s.cost for s in sweeps]).sum(0)  # by place in the order
    units = len(rise)
    saliency = torch.empty(len(sweeps) * units, dtype=torch.float64)
    for place, one in enumerate(sweeps):
        saliency[place * units + one.order] = rise
    removed = [units - width // len(sweeps) for width in widths]
    costs = [float(rise[count - 1]) if count else 0.0 for count in removed]
    return WidthCosts(
        saliency.numpy(), np.array([0, *widths], dtype=np.int64), np.array([bypass, *costs], dtype=np.float64)
    )
