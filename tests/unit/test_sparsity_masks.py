"""Masks have exact counts, agree with direct definitions, and the global threshold is that of a full sort."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tracenas.errors import UserError
from tracenas.saliency.masks import Sparsity, keep, nm_holds, pruned_count, threshold

TARGETS = {
    "0.5": Sparsity(0.5),
    "50%": Sparsity(0.5),
    "0": Sparsity(0.0),
    "2:4": Sparsity(0.5, 2, 4),
    " 4:8 ": Sparsity(0.5, 4, 8),
    "1:4": Sparsity(0.75, 1, 4),
}


@pytest.mark.parametrize(("text", "target"), TARGETS.items())
def test_targets_are_read(text: str, target: Sparsity) -> None:
    assert Sparsity.parse(text) == target


@pytest.mark.parametrize("text", ["1", "1.0", "-0.1", "100%", "nan", "inf", "half", "4:2", "2:2", "0:4", "2:4:8", ""])
def test_other_sparsities_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"accepted: a share in \[0, 1\)"):
        Sparsity.parse(text)


def test_a_width_that_m_does_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match="layer 0 o_proj has 10 inputs, which is not divisible by 4"):
        Sparsity.parse("2:4").check_columns(10, "layer 0 o_proj")


def test_counts_of_decimal_shares_are_exact() -> None:
    assert [pruned_count(100, s) for s in (0.29, 0.57, 0.58, 0.7)] == [29, 57, 58, 70]
    assert pruned_count(7, 0.5) == 3


scores = st.integers(0, 2**31).map(
    lambda seed: torch.randn(6, 16, generator=torch.Generator().manual_seed(seed)).round(decimals=1)
)


@settings(deadline=None, max_examples=30)
@given(scores, st.sampled_from([0.0, 0.25, 0.5, 0.9]))
def test_rows_and_layers_lose_exactly_their_lowest(score: torch.Tensor, share: float) -> None:
    by_row, by_layer = keep(score, Sparsity(share)), keep(score, Sparsity(share), "layer")
    assert bool(((~by_row).sum(dim=1) == pruned_count(16, share)).all())
    assert int((~by_layer).sum()) == pruned_count(96, share)
    for i in range(6):
        if bool((~by_row[i]).any()):
            assert score[i][~by_row[i]].max() <= score[i][by_row[i]].min()
    if bool((~by_layer).any()):
        assert score[~by_layer].max() <= score[by_layer].min()


@settings(deadline=None, max_examples=30)
@given(scores, st.sampled_from([(2, 4), (4, 8), (1, 4), (3, 4)]))
def test_n_of_every_m_stay(score: torch.Tensor, pattern: tuple[int, int]) -> None:
    n, m = pattern
    target = Sparsity(1 - n / m, n, m)
    stays = keep(score, target)
    groups, values = stays.view(6, -1, m), score.view(6, -1, m)
    assert bool((groups.sum(dim=-1) == n).all())
    for row in range(6):
        for g in range(16 // m):
            assert values[row, g][groups[row, g]].min() >= values[row, g][~groups[row, g]].max()
    assert nm_holds(stays.float(), target) and not nm_holds(torch.ones(6, 16), target)


def test_of_equal_scores_the_earlier_goes_first() -> None:
    assert keep(torch.zeros(1, 4), Sparsity(0.5)).tolist() == [[False, False, True, True]]


@settings(deadline=None, max_examples=30)
@given(st.lists(scores, min_size=1, max_size=4), st.sampled_from([0.0, 0.1, 0.5, 0.99]))
def test_the_global_threshold_is_that_of_a_full_sort(layers: list[torch.Tensor], share: float) -> None:
    layers = [*layers, torch.tensor([[-0.0, 0.0, 1e-40, -1e-40, 3e38, -3e38]])]
    found = threshold(lambda: iter(layers), share)
    masks = [found.keep(score) for score in layers]
    flat = torch.cat([score.reshape(-1) for score in layers])
    expected = torch.ones_like(flat, dtype=torch.bool)
    expected[torch.sort(flat, stable=True).indices[: pruned_count(flat.numel(), share)]] = False
    assert torch.equal(torch.cat([m.reshape(-1) for m in masks]), expected)
