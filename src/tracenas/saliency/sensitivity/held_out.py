"""What a width costs on text that its refit has not seen.

A refit of up to n inputs on N tokens fits the noise of these tokens, too: the sweep says what the fitted text costs,
which is too kind where N is not much larger than n. With G₁ and G₂ of the two halves of the text, E_h = W'_h - W the
change that is best for half h (the same columns, the same λ), what is expected of other text is the sweep's cost and

    ½ · mean over h of ½ tr(Γ E_h (G_other - G_h) E_hᵀ):

what a fit gains on its own text over other text falls as 1/N (Akaike's final prediction error), so that a fit on twice
the text gains half as much. A bypass fits nothing and costs what the sweep says.

One Cholesky factor per matrix serves all widths, as columns stand in the order in which they stay: that of the widest
width holds those of the others. Costs are compared in at most `PROBES` random directions of the outputs.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from tracenas.refits.penalty import per_channel
from tracenas.saliency.elimination import Sweep
from tracenas.saliency.sensitivity import PROBES, SHARES
from tracenas.saliency.sensitivity.moments import Moments
from tracenas.saliency.sensitivity.rises import RIDGE, metric_root

__all__ = ["held_out_rises"]

_TINY = 1e-300
_ROWS = 512
"""Of a matrix that are scaled at a time."""
_LEAST_STEP = 1e-3
"""From one width that is tried to the next narrower one, the cost rises by this share of the sweep's at least."""


def held_out_rises(
    swept: Sweep,
    moments: Moments,
    weight: Tensor,
    metric: Tensor,
    owner: Tensor,
    widths: Sequence[int],
    *,
    ridge: float = RIDGE,
) -> Sweep:
    """The sweep's order with the costs that other text is expected to have, increasing as the sweep's do.

    Args:
        swept: of `predicted_rises`, with the other arguments as they were there.
        moments: of the inputs, in halves.
    """
    units = widths[-1]
    tried = sorted({min(widths[:-1], key=lambda w: abs(w - share * units)) for share in SHARES}) if units > 1 else []
    inputs = weight.T.double() @ _directions(metric_root(metric))
    places = _as_they_stay(swept.order, owner).to(inputs.device)
    columns = [int((owner < 0).sum()) + w * (int((owner >= 0).sum()) // units) for w in tried]
    inputs = inputs[places]
    whole = _penalised(moments.second, places, ridge)
    fitted = _costs(_changes(whole, inputs, columns), whole)
    del whole
    one, other = (_changes(_penalised(half, places, ridge), inputs, columns) for half in moments.halves)
    first, second = (half[places][:, places] for half in moments.halves)
    difference = second.sub_(first)
    excess = _costs(one, difference) - _costs(other, difference)
    factors = 1 + 0.25 * excess / fitted.clamp(min=_TINY)
    expected = [
        (cost := float(swept.cost[units - width - 1]), float(factor) * cost)
        for width, factor in zip(tried, factors, strict=True)
    ]
    return replace(swept, cost=_along(swept.cost, _increasing([*reversed(expected), (swept.bypass, swept.bypass)])))


def _increasing(pairs: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """(sweep's cost, expected cost) from (0, 0), the latter rising; a narrower width limits a wider one."""
    costs = [0.0, *(cost for cost, _ in pairs)]
    steps = [_LEAST_STEP * (after - before) for before, after in pairwise(costs)]
    expected = [value for _, value in pairs]
    for place in reversed(range(len(expected) - 1)):
        expected[place] = min(expected[place], expected[place + 1] - steps[place + 1])
    known = [0.0]
    for value, step in zip(expected, steps, strict=True):
        known.append(max(value, known[-1] + step))
    return list(zip(costs, known, strict=True))


def _directions(root: Tensor) -> Tensor:
    """R [D, D], or R Z [D, PROBES] with E[Z Zᵀ] = I, where that is narrower."""
    wide = root.shape[1]
    if wide <= PROBES:
        return root
    drawn = torch.randn(wide, PROBES, generator=torch.Generator().manual_seed(wide), dtype=torch.float64)
    directions: Tensor = root @ (drawn / PROBES**0.5).to(root.device)
    return directions


def _as_they_stay(order: Tensor, owner: Tensor) -> Tensor:
    """Columns of no unit, then those of the unit that goes last, and so on: int64 [n]."""
    rank = torch.empty(len(order) + 1, dtype=torch.int64)
    rank[order.flip(0)] = torch.arange(1, len(order) + 1)
    rank[-1] = 0  # what owner -1 reads
    return rank[owner.cpu()].argsort(stable=True)


def _penalised(moment: Tensor, places: Tensor, ridge: float) -> Tensor:
    """A moment with λ on its diagonal, its rows and columns at these places, float64."""
    placed = moment[places][:, places].double()
    placed.diagonal().add_(per_channel(placed, ridge))
    return placed


def _changes(penalised: Tensor, inputs: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """E [n, k]: what the refit on A = `penalised` changes where the first s columns stay, for every s of `counts`.

    W'_S = A_SS⁻¹ A_S: W, with A brought to a diagonal of ones, in float32: λ bounds its condition by n/λ.
    """
    widest = max(counts, default=0)
    scale = penalised.diagonal()[:widest, None].sqrt()
    targets = (penalised[:widest] @ inputs / scale).float()
    scaled = torch.empty(widest, widest, dtype=torch.float32, device=inputs.device)
    for rows in torch.arange(widest, device=inputs.device).split(_ROWS):
        scaled[rows] = (penalised[rows, :widest] / scale[rows] / scale.T).float()
    factor: Tensor = torch.linalg.cholesky(scaled, out=scaled)
    forward = torch.linalg.solve_triangular(factor, targets, upper=False)
    changes = []
    for count in counts:
        refitted = torch.linalg.solve_triangular(factor[:count, :count].T, forward[:count], upper=True)
        change = -inputs
        change[:count] += refitted / scale[:count]
        changes.append(change)
    return changes


def _costs(changes: Sequence[Tensor], gram: Tensor) -> Tensor:
    """Σ E G E over the probed directions, twice the rise, of every change: float64 [changes]."""
    if not changes:
        return torch.zeros(0, dtype=torch.float64)
    together = torch.stack(list(changes), 1)  # [n, changes, directions]
    moved = (gram @ together.to(gram.dtype).flatten(1)).view_as(together)
    return (together * moved).sum((0, 2), dtype=torch.float64)


def _along(costs: Tensor, known: Sequence[tuple[float, float]]) -> Tensor:
    """The sweep's costs, moved to what is known: linear from one known cost to the next."""
    places, values = (torch.tensor(column, dtype=torch.float64) for column in zip(*known, strict=True))
    right = torch.searchsorted(places, costs).clamp(1, len(places) - 1)
    low, high = places[right - 1], places[right]
    share = ((costs - low) / (high - low).clamp(min=_TINY)).clamp(0, 1)
    return values[right - 1] + share * (values[right] - values[right - 1])
