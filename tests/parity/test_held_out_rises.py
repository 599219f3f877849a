"""Costs on text that a refit has not seen: against least squares on halves, and against the truth of drawn inputs."""

import pytest
import torch
from test_sensitivity import COLUMNS, LAYOUTS, ROWS, least_squares, problem
from torch import Tensor

from tracenas.saliency.elimination import Sweep
from tracenas.saliency.sensitivity import PROBES, SHARES
from tracenas.saliency.sensitivity.held_out import held_out_rises
from tracenas.saliency.sensitivity.moments import Moments
from tracenas.saliency.sensitivity.rises import predicted_rises

pytestmark = pytest.mark.parity


def moments_of(inputs: Tensor) -> Moments:
    """Of rows [N, n]."""
    first, second = (half.T @ half / len(half) for half in inputs.tensor_split(2))
    return Moments(inputs.T @ inputs / len(inputs), inputs.mean(0), len(inputs), (first.float(), second.float()))


def drawn(seed: int, count: int) -> Tensor:
    """Rows of correlated inputs, the last half of the channels noise of their own."""
    rng = torch.Generator().manual_seed(seed)
    mixing = torch.randn(COLUMNS, COLUMNS, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    return torch.randn(count, COLUMNS, generator=rng, dtype=torch.float64) @ mixing


def both(
    moments: Moments, weight: Tensor, metric: Tensor, owner: Tensor, widths: list[int], groups: int = 1
) -> tuple[Sweep, Sweep]:
    swept = predicted_rises(moments.second, weight, metric, owner, widths, groups=groups, ridge=0.1)
    return swept, held_out_rises(swept, moments, weight, metric, owner, widths, ridge=0.1)


def cost(change: Tensor, gram: Tensor, metric: Tensor) -> float:
    return 0.5 * float(torch.trace(metric @ change @ gram @ change.T))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_costs_are_the_definition_at_the_widths_that_are_tried(layout: str) -> None:
    """The sweep's cost + ½ · mean over halves of c(E_h, G_other) - c(E_h, G_h), by least squares from scratch."""
    _, weight, metric = problem()
    found, (owner, widths, groups) = moments_of(drawn(1, 200)), LAYOUTS[layout]
    swept, held = both(found, weight, metric, torch.tensor(owner), widths, groups)
    assert held.order.tolist() == swept.order.tolist()
    first, second = (half.double() for half in found.halves)
    units, checked = widths[-1], 0
    for share in SHARES:
        width = min(widths[:-1], key=lambda w: abs(w - share * units))
        gone = swept.order[: units - width].tolist()
        kept = [j for j, o in enumerate(owner) if o not in gone]
        one, other = (least_squares(g, weight, kept, 0.1) - weight for g in (first, second))
        excess = [
            cost(one, second, metric) - cost(one, first, metric),
            cost(other, first, metric) - cost(other, second, metric),
        ]
        expected = float(swept.cost[units - width - 1]) + 0.5 * sum(excess) / 2
        assert float(held.cost[units - width - 1]) == pytest.approx(expected, rel=1e-4)
        checked += 1
    assert checked == len(SHARES)
    assert held.bypass == swept.bypass
    assert (held.cost.diff() > 0).all() and held.bypass >= float(held.cost[-1]) * (1 - 1e-9)


def test_other_text_costs_what_is_expected() -> None:
    """60 tokens for 24 inputs: the sweep is too kind, what is expected of other text is right on average.

    Other text with inputs disturbed by λ of every channel's energy: that is what the penalty stands for.
    """
    _, weight, metric = problem()
    widths, owner = list(range(1, COLUMNS + 1)), torch.arange(COLUMNS)
    truth = drawn(0, 200_000)
    gram = truth.T @ truth / len(truth)
    gram += torch.diag(0.1 * gram.diagonal())
    ratios: dict[str, list[float]] = {"swept": [], "held": []}
    for seed in range(1, 41):
        found = moments_of(drawn(seed, 60))
        swept, held = both(found, weight, metric, owner, widths)
        lost = COLUMNS // 4
        kept = [j for j in range(COLUMNS) if j not in swept.order[:lost].tolist()]
        true = cost(least_squares(found.second, weight, kept, 0.1) - weight, gram, metric)
        ratios["swept"].append(float(swept.cost[lost - 1]) / true)
        ratios["held"].append(float(held.cost[lost - 1]) / true)
    mean = {name: sum(values) / len(values) for name, values in ratios.items()}
    assert mean["held"] == pytest.approx(1.0, abs=0.15)
    assert abs(mean["held"] - 1) < 0.5 * abs(mean["swept"] - 1)


def test_probes_stand_for_all_outputs() -> None:
    """More outputs than probes: the ratio to the sweep's cost is that of all directions, to a few percent."""
    rng = torch.Generator().manual_seed(5)
    rows = 6 * PROBES
    weight = torch.randn(rows, COLUMNS, generator=rng, dtype=torch.float64)
    slopes = torch.randn(800, rows, generator=rng, dtype=torch.float64)
    found, metric = moments_of(drawn(3, 120)), slopes.T @ slopes / 800
    widths = [6, 12, 18, 24]
    swept, held = both(found, weight, metric, torch.arange(COLUMNS), widths)
    first, second = (half.double() for half in found.halves)
    for width in widths[:-1]:
        lost = COLUMNS - width
        kept = [j for j in range(COLUMNS) if j not in swept.order[:lost].tolist()]
        one, other = (least_squares(g, weight, kept, 0.1) - weight for g in (first, second))
        excess = cost(one, second, metric) - cost(one, first, metric) + cost(other, first, metric)
        excess -= cost(other, second, metric)
        expected = float(swept.cost[lost - 1]) + 0.25 * excess
        assert float(held.cost[lost - 1]) == pytest.approx(expected, rel=0.08)


def test_a_fit_that_is_all_noise_costs_no_more_than_none() -> None:
    """Two tokens per half: what is expected rises with every unit all the same, up to the bypass."""
    _, weight, metric = problem()
    found = moments_of(drawn(7, 4))
    swept, held = both(found, weight, metric, torch.arange(COLUMNS), list(range(1, COLUMNS + 1)))
    assert (held.cost.diff() > 0).all() and float(held.cost[0]) > 0
    assert float(held.cost[-1]) <= held.bypass * (1 + 1e-9)
    assert held.bypass == swept.bypass
    nothing = Moments(torch.zeros(24, 24).double(), torch.zeros(24), 0, (torch.zeros(24, 24), torch.zeros(24, 24)))
    _, held = both(nothing, weight, metric, torch.arange(COLUMNS), [8, 16, 24])
    assert torch.isfinite(held.cost).all() and 0 <= float(held.cost.max()) < 1e-20
    assert len(weight) == ROWS
