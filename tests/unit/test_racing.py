"""Racing: who is stopped, when, and with what estimate."""

import math

import numpy as np
import pytest

from tracenas.scoring.racing import Bar, generation_bar, looks


def test_looks_cover_every_sequence_once_and_grow_by_half() -> None:
    for count in range(1, 70):
        seen = [i for piece in looks(count) for i in range(count)[piece]]
        assert seen == list(range(count))
    assert [s.stop for s in looks(16)] == [1, 2, 3, 4, 6, 9, 13, 16]
    assert [s.stop for s in looks(10)] == [1, 2, 3, 4, 6, 10]


def test_the_bar_is_the_worst_elite_with_the_median_variance_of_the_latest_differences() -> None:
    rng = np.random.default_rng(0)
    measured = rng.normal(2.0, 0.1, (30, 12))
    elites = measured[[3, 8, 20]]
    bar = generation_bar([list(row) for row in elites], [list(row) for row in measured])
    assert bar is not None
    assert bar.losses == tuple(elites[-1])
    latest = [np.var(row - elites[-1], ddof=1) for i, row in enumerate(measured) if i >= 13 and i != 20]
    assert len(latest) == 16
    assert bar.variance == pytest.approx(np.median(latest))
    assert generation_bar([list(elites[0])], [list(elites[0])]) is None
    assert generation_bar([], []) is None
    assert generation_bar([[1.0], [2.0]], [[1.0], [2.0]]) == Bar((2.0,), 0.0)


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
        bar = generation_bar(elites, elites)
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
        elites = [list(3.0 + sequence + rng.normal(0, 0.02, 16)) for _ in range(6)]
        bar = generation_bar(elites, elites)
        assert bar is not None
        candidate = 3.1 + sequence + rng.normal(0, 0.02, 16)
        tokens += next((s.stop for s in looks(16) if bar.beats(list(candidate[: s.stop]))), 16)
    assert tokens / (500 * 16) < 0.3
