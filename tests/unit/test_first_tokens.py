"""The tokens that stand beside a text as first ones."""

import torch

from tracenas.refits.first_tokens import first_tokens


def test_they_are_evenly_spaced_over_the_text() -> None:
    tokens = torch.arange(96).view(4, 24)
    assert first_tokens(tokens).tolist() == [[0], [24], [48], [72]]
    assert first_tokens(tokens + 5).tolist() == [[5], [29], [53], [77]]


def test_where_every_window_begins_with_one_token_they_are_that_one() -> None:
    tokens = torch.arange(96).view(4, 24)
    tokens[:, 0] = 7
    assert first_tokens(tokens).tolist() == [[7]] * 4


def test_one_window_says_nothing_of_how_windows_begin() -> None:
    assert first_tokens(torch.arange(48).view(1, 48)).tolist() == [[0], [24]]


def test_there_is_one_at_least() -> None:
    assert first_tokens(torch.tensor([[3, 4], [5, 6]])).tolist() == [[3]]
