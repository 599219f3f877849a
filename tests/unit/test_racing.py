"""Racing: who is stopped, when, and with what estimate."""

import math

import numpy as np
import pytest

from tracenas.scoring.racing import Bar, bar_of, looks


def test_looks_cover_every_sequence_once_and_double() -> None:
    for count in range(1, 70):
        seen = [i for piece in looks(count) for i in range(count)[piece]]
        assert seen == list(range(count))
    assert [(s.start, s.stop) for s in looks(16)] == [(0, 2), (2, 4), (4, 8), (8, 16)]
    assert [(s.start, s.stop) for s in looks(9)] == [(0, 2), (2, 4), (4, 9)]


def test_the_bar_is_the_worst_elite_with_the_median_variance_of_differences() -> None:
    rng = np.random.default_rng(0)
    elites = rng.normal(2.0, 0.1, (4, 12))
    bar = bar_of([list(row) for row in elites])
    assert bar is not None
    assert bar.losses == tuple(elites[-1])
    pairs = [np.var(elites[i] - elites[j], ddof=1) for i in range(4) for j in range(i)]
    assert bar.variance == pytest.approx(np.median(pairs))
    assert bar_of([list(elites[0])]) is None


def test_a_candidate_that_is_not_worse_is_never_stopped() -> None:
    bar = Bar((1.0, 2.0, 3.0, 4.0), 0.01)
    assert not bar.beats([1.0, 2.0])
    assert not bar.beats([0.5, 1.0])
    assert not bar.beats([1.05, 2.0])
    assert bar.beats([2.0, 3.0])
    assert bar.beats([math.nan, 2.0])
    assert bar.beats([math.inf, 2.0])


def test_at_the_last_sequence_the_mean_decides() -> None:
    bar = Bar((1.0, 2.0, 3.0, 4.0), 10.0)
    assert bar.beats([1.001, 2.0, 3.0, 4.0])
    assert not bar.beats([0.999, 2.0, 3.0, 4.0])


def test_the_estimate_is_the_loss_when_all_sequences_were_seen() -> None:
    bar = Bar((1.0, 2.0, 3.0), 1.0)
    assert bar.estimate([1.5, 2.5, 4.5]) == pytest.approx(8.5 / 3)
    assert bar.estimate([1.5]) == pytest.approx(2.5)


def test_wrong_verdicts_are_rare() -> None:
    """Candidates as good as the bar but for noise: how many does a sequence of looks throw out?"""
    rng = np.random.default_rng(1)
    wrong = 0
    for _ in range(2000):
        sequence = rng.normal(0, 0.5, 16)  # what all candidates share
        elites = [list(3.0 + sequence + rng.normal(0, 0.02, 16)) for _ in range(6)]
        bar = bar_of(elites)
        assert bar is not None
        candidate = 3.0 + sequence + rng.normal(0, 0.02, 16)
        better = candidate.mean() < bar.mean
        seen = [list(candidate[: s.stop]) for s in looks(16)][:-1]
        wrong += better and any(bar.beats(part) for part in seen)
    assert wrong / 2000 < 0.01


def test_most_of_a_clearly_worse_candidate_is_not_measured() -> None:
    rng = np.random.default_rng(2)
    tokens = 0
    for _ in range(500):
        sequence = rng.normal(0, 0.5, 16)
        bar = bar_of([list(3.0 + sequence + rng.normal(0, 0.02, 16)) for _ in range(6)])
        assert bar is not None
        candidate = 3.1 + sequence + rng.normal(0, 0.02, 16)
        tokens += next((s.stop for s in looks(16) if bar.beats(list(candidate[: s.stop]))), 16)
    assert tokens / (500 * 16) < 0.3
