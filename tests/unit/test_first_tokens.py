"""The tokens that stand beside a text as first ones."""

import torch

from tracenas.refits.first_tokens import first_tokens


def test_they_are_evenly_spaced_over_the_text_and_over_the_vocabulary() -> None:
    tokens = torch.arange(96).view(4, 24)
    assert first_tokens(tokens, 400).tolist() == [[0], [24], [48], [72], [0], [100], [200], [300]]
    assert first_tokens(tokens + 5, 10).tolist() == [[5], [29], [53], [77], [0], [2], [5], [7]]


def test_where_every_window_begins_with_one_token_they_are_that_one() -> None:
    tokens = torch.arange(96).view(4, 24)
    tokens[:, 0] = 7
    assert first_tokens(tokens, 400).tolist() == [[7]] * 8


def test_one_window_says_nothing_of_how_windows_begin() -> None:
    assert first_tokens(torch.arange(48).view(1, 48), 50).tolist() == [[0], [24], [0], [25]]


def test_there_is_one_at_least() -> None:
    assert first_tokens(torch.tensor([[3, 4], [5, 6]]), 10).tolist() == [[3], [0]]
