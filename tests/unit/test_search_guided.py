"""Guided search: small moves within the budget, chosen by a regression on the scores."""

import numpy as np
import pytest
import toys
from hypothesis import given, settings
from hypothesis import strategies as st

from tracenas.space import Architecture, SearchSpace
from tracenas.strategies import Prior, SearchSettings
from tracenas.strategies.evolution import Evolution
from tracenas.strategies.guided import DRAWS, Guided
from tracenas.strategies.surrogate import features, fit

SMALL = SearchSettings(population=8, elites=3, iterations=6, init="uniform")


def concave(space: SearchSpace, arch: Architecture) -> float:
    """Early blocks are worth more, and every unit more is worth less: uniform is good and not best."""
    ratios = space.ratios(arch)
    return sum(float(np.sqrt(r)) * (1.5 - i / len(ratios)) for i, row in enumerate(ratios) for r in row)


def best_of(strategy: "Guided[Architecture]", space: SearchSpace) -> float:
    """The score of the best candidate of a whole search."""
    best = -np.inf
    while (batch := strategy.ask()) is not None:
        scores = [concave(space, p.candidate) for p in batch.proposals]
        best = max(best, *scores)
        strategy.tell(batch, scores)
    return float(best)


@settings(deadline=None, max_examples=60)
@given(toys.spaces(), st.integers(0, 2**32 - 1))
def test_neighbours_meet_the_budget_and_leave_nothing_of_it(space: SearchSpace, seed: int) -> None:
    rng = np.random.default_rng(seed)
    start = space.sample(rng)
    if start is None:
        return
    near = space.neighbour(start, rng)
    assert near is not None
    toys.assert_meets(space, near)
    for i, row in enumerate(space.counts(near)):
        for j, kept in enumerate(row):
            choices = space.layers[i].sub_blocks[j].choices()
            if kept and kept != choices[-1]:
                at = choices.index(kept)
                grown = space.cost(near) + space.tables[i][j][at + 1] - space.tables[i][j][at]
                assert grown > space.window[1]


def test_neighbours_differ_in_few_sub_blocks_or_in_many() -> None:
    space = toys.space(0.6, layers=16)
    start = space.uniform()
    assert start is not None
    rng = np.random.default_rng(0)
    moved = []
    for _ in range(200):
        near = space.neighbour(start, rng, sigma=0.1)
        assert near is not None
        pairs = zip(space.counts(start), space.counts(near), strict=True)
        moved.append(sum(a != b for old, new in pairs for a, b in zip(old, new, strict=True)))
    assert min(moved) <= 3
    assert max(moved) >= 16


@pytest.mark.parametrize("columns", [50, 4])
def test_the_regression_is_ridge_at_the_strength_of_the_highest_evidence(columns: int) -> None:
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(30, columns)), rng.normal(size=columns)
    y = 2.0 + x @ w + 0.5 * rng.normal(size=30)
    found = fit(x, y)
    centred = x - x.mean(axis=0)

    def density(ratio: float, noise: float) -> float:
        covariance = noise * (centred @ centred.T / ratio + np.eye(30))
        residual = y - y.mean()
        return -0.5 * float(residual @ np.linalg.solve(covariance, residual) + np.linalg.slogdet(covariance)[1])

    def ridge(ratio: float) -> np.ndarray:
        return np.linalg.solve(centred.T @ centred + ratio * np.eye(columns), centred.T @ (y - y.mean()))

    ratios = [10.0 ** (0.5 * e) for e in range(-12, 9)]
    noises = np.logspace(-8, 3, 221)
    best = max(ratios, key=lambda r: max(density(r, s) for s in noises))
    np.testing.assert_allclose(found.weights, ridge(best), atol=1e-8)
    assert found(x.mean(axis=0)) == pytest.approx(y.mean())


def test_features_of_blocks_of_different_kinds() -> None:
    assert features([[0.5, 1.0], [0.0]]).tolist() == [0.5, 1.0, 0.0, 1.0, 1.0, 0.0, 0.25, 1.0]


def test_a_regression_on_equal_scores_expects_that_score() -> None:
    x = np.random.default_rng(0).normal(size=(5, 3))
    assert fit(x, np.full(5, -2.0))(x[0]) == pytest.approx(-2.0)


@pytest.mark.slow
def test_guided_search_gains_more_than_evolution_from_a_good_start() -> None:
    space = toys.space(0.6, layers=12)
    start = space.uniform()
    assert start is not None
    uniform = concave(space, start)
    for seed in range(3):
        given_settings = SearchSettings(population=12, elites=4, iterations=8, init="uniform", seed=seed)
        guided = best_of(Guided(space, given_settings), space) - uniform
        published = best_of(Evolution(space, given_settings), space) - uniform  # type: ignore[arg-type]
        assert guided > published
        assert guided > 0


def test_a_generations_draws_depend_on_what_was_told_only() -> None:
    space = toys.space(0.6)
    one, two = Guided(space, SMALL), Guided(space, SMALL)
    for _ in range(4):
        first, second = one.ask(), two.ask()
        assert first is not None and second is not None
        assert list(first.proposals) == list(second.proposals)
        scores = [concave(space, p.candidate) for p in first.proposals]
        one.tell(first, scores)
        two.tell(first, scores)


def test_the_child_is_the_best_of_all_draws_by_the_regression() -> None:
    space = toys.space(0.6, layers=12)
    strategy = Guided(space, SMALL)
    batch = strategy.ask()
    assert batch is not None
    scores = [concave(space, p.candidate) for p in batch.proposals]
    strategy.tell(batch, scores)
    assert [concave(space, elite) for elite in strategy.elites] == sorted(scores, reverse=True)[: SMALL.elites]
    surrogate = strategy._surrogate
    assert surrogate is not None
    places = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        drawn = [Evolution._child(strategy, rng) for _ in range(DRAWS)]
        new = [p for p in drawn if p is not None and p.feasible and p.candidate.id not in strategy._seen]
        expected = [surrogate(features(space.ratios(p.candidate))) for p in new]
        child = strategy._child(np.random.default_rng(seed))
        assert child == new[int(np.argmax(expected))]
        places.append(int(np.argmax(expected)))
    assert max(places) > DRAWS // 2 and len(set(places)) > 3


def test_where_nothing_has_a_score_children_are_samples() -> None:
    strategy = Guided(toys.space(0.6), SMALL)
    batch = strategy.ask()
    assert batch is not None
    strategy.tell(batch, [float("-inf")] * len(batch.proposals))
    following = strategy.ask()
    assert following is not None
    assert len(following.proposals) + following.duplicates == 5


@pytest.mark.parametrize(("init", "population"), [("uniform", 8), ("random", 8), ("uniform", 2), ("importance", 8)])
def test_the_prior_is_in_the_first_generation(init: str, population: int) -> None:
    space = toys.space(0.6)
    ratios = [[1.0 + i] * 2 for i in range(8)]
    wanted = space.profile(ratios)
    assert wanted is not None
    given_settings = SearchSettings(population=population, elites=1, iterations=1, init=init)
    batch = Guided(space, given_settings, prior=Prior(ratios)).ask()
    assert batch is not None and len(batch.proposals) == population
    assert [p.candidate for p in batch.proposals].count(wanted) == 1


def test_the_prior_gives_way_to_seeds() -> None:
    space = toys.space(0.6)
    rng = np.random.default_rng(0)
    seeds = [space.sample(rng) for _ in range(2)]
    given_settings = SearchSettings(population=2, elites=1, iterations=1, init="given")
    batch = Guided(space, given_settings, prior=Prior([[1.0 + i] * 2 for i in range(8)]), seeds=seeds).ask()  # type: ignore[arg-type]
    assert batch is not None
    assert [p.candidate for p in batch.proposals] == seeds
