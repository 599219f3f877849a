"""Realisations are compared on the first windows, and on all of them where these do not decide."""

from typing import Any

import pytest
import torch

from tracenas.models.surgery.supernet import Realisation
from tracenas.pipeline.refit import race
from tracenas.pipeline.refit.race import RealisationRace

FIRST, ALL, LENGTH = 2, 8, 512


class Losses:
    """Losses of every realisation by window, and what was asked for."""

    def __init__(self, by_window: dict[str, list[float]]) -> None:
        self.by_window = {name: torch.tensor(losses, dtype=torch.float64) for name, losses in by_window.items()}
        self.hows = {name: None if name == "plain" else Realisation() for name in by_window}
        self.asked: list[tuple[str, int]] = []

    def __call__(self, _: Any, __: Any, how: Realisation | None, tokens: torch.Tensor) -> torch.Tensor:
        (name,) = (name for name, one in self.hows.items() if one is how)
        self.asked.append((name, len(tokens)))
        return self.by_window[name][tokens[:, 0]]


def raced(monkeypatch: pytest.MonkeyPatch, by_window: dict[str, list[float]]) -> tuple[RealisationRace, Losses]:
    losses = Losses(by_window)
    monkeypatch.setattr(race, "candidate_losses", losses)
    tokens = torch.arange(ALL)[:, None].expand(ALL, LENGTH)
    held: Any = None
    found = RealisationRace(held, held, tokens)
    for name, how in losses.hows.items():
        found.enter(name, how)
    found.finish()
    return found, losses


def test_a_clear_lead_needs_no_more_text(monkeypatch: pytest.MonkeyPatch) -> None:
    found, losses = raced(monkeypatch, {"plain": [5.0, 6.0] + [0.0] * 6, "ridge": [4.0, 5.9] + [9.0] * 6})
    assert found.losses() == {"plain": 5.5, "ridge": 4.95} and found.tokens == FIRST * LENGTH
    assert losses.asked == [("plain", FIRST), ("ridge", FIRST)]


def test_a_lead_in_one_window_alone_is_not_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    by_window = {"plain": [4.0, 4.0] + [4.0] * 6, "ridge": [3.0, 3.99] + [4.5] * 6}
    found, losses = raced(monkeypatch, by_window)
    assert found.losses() == {name: pytest.approx(sum(each) / ALL) for name, each in by_window.items()}
    assert min(found.losses(), key=found.losses().__getitem__) == "plain" and found.tokens == ALL * LENGTH
    assert losses.asked[2:] == [("plain", ALL - FIRST), ("ridge", ALL - FIRST)]


def test_what_overflows_is_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    nan = float("nan")
    found, _ = raced(monkeypatch, {"plain": [5.0] * ALL, "ridge": [nan] * ALL, "sequential": [4.0] * ALL})
    assert found.losses() == {"plain": 5.0, "ridge": float("inf"), "sequential": 4.0}
    assert found.tokens == FIRST * LENGTH
    found, _ = raced(monkeypatch, {"plain": [nan] * ALL, "ridge": [nan] * ALL})
    assert found.losses() == {"plain": float("inf"), "ridge": float("inf")} and found.tokens == ALL * LENGTH
