"""The table as the model of the score: its posterior, its solver's answers, and a search by it."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import toys
from hypothesis import given, settings
from hypothesis import strategies as st

from tracenas.space import Architecture, SearchSpace
from tracenas.strategies import Prior, SearchSettings
from tracenas.strategies.guided import Guided
from tracenas.strategies.knapsack import by_price
from tracenas.strategies.posterior import NOISES, SPREAD, fit
from tracenas.strategies.solver import problem_in_space, solve
from tracenas.strategies.tabled import Tabled

Rises = dict[tuple[int, str], list[float]]


def table(space: SearchSpace, seed: int = 0) -> Rises:
    """Convex rises: what is lost first costs next to nothing."""
    rng = np.random.default_rng(seed)
    rises: Rises = {}
    for i, layer in enumerate(space.layers):
        for s in layer.sub_blocks:
            lost = 1 - np.array((0, *s.choices())) / max(s.units, 1)
            rises[i, s.name] = (rng.uniform(0.05, 0.3) * lost**2).tolist()
    return rises


def total(space: SearchSpace, rises: Rises, arch: Architecture) -> float:
    """The table's sum."""
    counts = space.counts(arch)
    return sum(
        rises[i, s.name][(0, *s.choices()).index(counts[i][j])]
        for i, layer in enumerate(space.layers)
        for j, s in enumerate(layer.sub_blocks)
    )


@pytest.mark.parametrize("loose", [False, True])
def test_the_posterior_is_that_of_the_joint_distribution(loose: bool) -> None:
    rng = np.random.default_rng(0)
    n, d = 9, 5
    features, prior_mean = rng.normal(size=(n, d)), np.array([1.0, 1.0, 1.0, 0.0, 0.0])
    scores = 3.0 + features @ np.array([2.1, 1.8, 2.4, 0.1, 0.0]) + 0.1 * rng.normal(size=n)
    looseness = rng.uniform(1.0, 5.0, size=n) if loose else np.ones(n)
    found = fit(features, scores, prior_mean, looseness if loose else None)

    def joint(unit: float, noise: float) -> tuple[float, np.ndarray, np.ndarray]:
        """Log density with the level integrated out, mean and covariance of θ, by generalised least squares."""
        prior = unit**2 * SPREAD**2 * np.eye(d)
        inverse = np.linalg.inv(features @ prior @ features.T + unit**2 * noise**2 * np.diag(looseness))
        weight = inverse.sum()
        free = inverse - np.outer(inverse.sum(1), inverse.sum(0)) / weight
        rest = scores - unit * features @ prior_mean
        density = 0.5 * (np.linalg.slogdet(inverse)[1] - np.log(weight) - rest @ free @ rest)
        gain = prior @ features.T @ free
        return float(density), unit * prior_mean + gain @ rest, prior - gain @ features @ prior

    _, mean, covariance = joint(found.unit, found.noise)
    np.testing.assert_allclose(found.mean, mean, atol=1e-5)
    np.testing.assert_allclose(found.covariance, covariance, atol=1e-5)
    units = found.unit * np.logspace(-1, 1, 81)
    best = max(itertools.product(units, NOISES), key=lambda at: joint(*at)[0])
    assert best == pytest.approx((found.unit, found.noise), rel=1e-9)
    draws = np.stack([found.sample(np.random.default_rng(seed)) for seed in range(4000)])
    scale = np.sqrt(np.diag(found.covariance))
    np.testing.assert_allclose(draws.mean(axis=0), found.mean, atol=0.08 * scale.max())
    np.testing.assert_allclose(np.cov(draws.T), found.covariance, atol=0.1 * scale.max() ** 2)
    level = np.average(scores - features @ found.mean, weights=1 / looseness)
    assert found(features[0]) == pytest.approx(level + found.mean @ features[0])


@pytest.mark.parametrize("scores", [[1.0], [2.0, 2.0, 2.0]])
def test_where_nothing_differs_the_prior_stands(scores: list[float]) -> None:
    features = np.arange(2.0 * len(scores)).reshape(-1, 2)
    found = fit(features, np.array(scores), np.ones(2))
    assert found.unit == 1.0
    np.testing.assert_array_equal(found.mean, np.ones(2))


def test_the_unit_is_that_of_the_score() -> None:
    space = toys.space(0.6)
    rises = table(space)
    rng = np.random.default_rng(0)
    pool = [arch for _ in range(20) if (arch := space.sample(rng)) is not None]
    for factor in (1e-3, 1.0, 50.0):
        model = Tabled(space, rises)
        model.learn([(7.0 - factor * total(space, rises, arch), arch) for arch in pool])
        assert model.posterior.unit == pytest.approx(factor, rel=0.3)  # as rises near a nat count for less
        expected = [model.expected(arch) for arch in pool]
        assert np.corrcoef(expected, [-total(space, rises, arch) for arch in pool])[0, 1] > 0.99


def test_a_sub_block_that_the_table_underrates_is_learnt() -> None:
    space = toys.space(0.6, layers=6)
    rises = table(space)
    truth = {key: [3 * r if key == (2, "mlp") else r for r in row] for key, row in rises.items()}
    rng = np.random.default_rng(0)
    pool = [arch for _ in range(40) if (arch := space.sample(rng)) is not None]
    model = Tabled(space, rises)
    model.learn([(-total(space, truth, arch), arch) for arch in pool])
    multipliers = model.posterior.mean[:12]
    assert int(np.argmax(multipliers)) == 5
    further = [arch for _ in range(40) if (arch := space.sample(rng)) is not None]
    expected = [model.expected(arch) for arch in further]
    assert (
        np.corrcoef(expected, [-total(space, truth, a) for a in further])[0, 1]
        > np.corrcoef([-total(space, rises, a) for a in further], [-total(space, truth, a) for a in further])[0, 1]
    )


def test_near_a_score_the_model_is_right_where_units_are_worth_something_else() -> None:
    """What is learnt at one size says the opposite of another: two halves of the blocks change places."""
    large, small = toys.space(0.8, layers=6), toys.space(0.5, layers=6)
    rises = table(large)

    def score(space: SearchSpace, arch: Architecture) -> float:
        dear = (lambda i: i < 3) if space is large else (lambda i: i >= 3)
        truth = {key: [(1.5 if dear(key[0]) else 0.5) * r for r in row] for key, row in rises.items()}
        return -total(space, truth, arch) - (0.0 if space is large else 3.0)

    rng = np.random.default_rng(0)
    pool = [(space, a) for space in (large, small) for _ in range(30) if (a := space.sample(rng)) is not None]
    scored = [(score(space, arch), arch) for space, arch in pool]
    further = [arch for _ in range(40) if (arch := small.sample(rng)) is not None]
    truth = [score(small, arch) for arch in further]
    model = Tabled(large, rises)
    model.learn(scored)
    near = model.near(scored, max(s for (space, _), (s, _) in zip(pool, scored, strict=True) if space is small))
    right, mixed = (np.corrcoef([m.expected(arch) for arch in further], truth)[0, 1] for m in (near, model))
    assert right > 0.8 and right > mixed + 0.1


def test_bypasses_and_neighbours_have_features_of_their_own() -> None:
    space = toys.space(0.5, layers=3, granularity="sublayer")
    rises = table(space)
    model = Tabled(space, rises)
    narrow = space.build([[0, 128], [4, 256], [8, 128]])
    found = -model.features(narrow)
    single = [rises[0, "attention"][0], rises[0, "mlp"][4], rises[1, "attention"][4], 0.0, 0.0, rises[2, "mlp"][4]]
    single = (1 - np.exp(-np.array(single))).tolist()
    np.testing.assert_allclose(found[:6], single)
    sums = [single[0] + single[1], single[2], single[5]]
    within, beside = np.sqrt(single[0] * single[1]), np.sqrt(sums[0] * sums[1]) + np.sqrt(sums[1] * sums[2])
    np.testing.assert_allclose(found[6:], [single[0], 0.0, within, beside])


def test_what_is_awaited_is_as_good_as_known() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(6, 4))
    before = fit(features, features @ np.array([1.0, 2.0, 0.5, 0.0]) + 0.3 * rng.normal(size=6), np.ones(4))
    one, best = rng.normal(size=4), features[0]
    after = before.awaiting(one, best)
    row, noise = (one - best)[None], (before.unit * before.noise) ** 2
    expected = np.linalg.inv(np.linalg.inv(before.covariance) + row.T @ row / noise)
    np.testing.assert_allclose(after.covariance, expected, atol=1e-9)
    np.testing.assert_array_equal(after.mean, before.mean)
    assert after.improvement(one, best) <= before.improvement(one, best)


def test_the_expected_improvement_is_that_of_the_draws() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(6, 4))
    found = fit(features, features @ np.array([1.0, 2.0, 0.5, 0.0]) + 0.3 * rng.normal(size=6), np.ones(4))
    draws = np.stack([found.sample(rng) for _ in range(40_000)])
    for one, other in ((features[0], features[1]), (features[2], features[3]), (features[1], features[0])):
        gains = np.maximum(0.0, draws @ (one - other))
        assert found.improvement(one, other) == pytest.approx(gains.mean(), abs=5 * gains.std() / 200 + 1e-5)
    assert found.improvement(features[0], features[0]) == 0.0


@settings(deadline=None, max_examples=60)
@given(toys.spaces(), st.integers(0, 2**32 - 1))
def test_answers_meet_the_budget(space: SearchSpace, seed: int) -> None:
    model = Tabled(space, table(space))
    answer = model.answer(np.random.default_rng(seed))
    if answer is not None:
        toys.assert_meets(space, answer)


@pytest.mark.parametrize("share", [0.4, 0.6, 0.8])
def test_the_price_leads_to_nearly_the_optimum(share: float) -> None:
    space = toys.space(share, layers=8, granularity="sublayer")
    problem = problem_in_space(space, table(space))
    levels, best = by_price(problem), solve(problem, gap=0.0)
    assert levels is not None and best is not None
    assert problem.within(levels)
    assert best.cost <= problem.cost(levels) <= 1.05 * best.cost


def test_what_was_only_drawn_is_forgotten() -> None:
    """A search draws seventy candidates for one that it measures."""
    space = toys.space(0.6)
    tabled, rng = Tabled(space, table(space)), np.random.default_rng(0)
    drawn = [arch for _ in range(30) if (arch := space.sample(rng)) is not None]
    expected = [tabled.expected(arch) for arch in drawn]
    assert len(set(expected)) > 1
    tabled.learn([(score, arch) for score, arch in zip(expected[:4], drawn, strict=False)])
    assert set(tabled._known) == {arch.id for arch in drawn[:4]}


def search(space: SearchSpace, rises: Rises | None, truth: Rises, seed: int) -> tuple[float, list[Architecture]]:
    """The best score of a whole search from the uniform architecture, and its candidates."""
    settings_ = SearchSettings(population=10, elites=3, iterations=5, init="uniform", seed=seed)
    ratios = [[1.0] * len(layer.sub_blocks) for layer in space.layers]
    strategy = Guided(space, settings_, prior=Prior(ratios, rises=rises))
    best, seen = -np.inf, []
    while (batch := strategy.ask()) is not None:
        scores = [-total(space, truth, p.candidate) for p in batch.proposals]
        strategy.tell(batch, scores)
        best, seen = max(best, *scores), [*seen, *(p.candidate for p in batch.proposals)]
    return float(best), seen


@pytest.mark.slow
def test_with_a_table_that_is_half_right_a_search_finds_more_than_without() -> None:
    space = toys.space(0.6, layers=12)
    rises = table(space)
    rng = np.random.default_rng(3)
    truth = {key: [float(r) * factor for r in row] for key, row in rises.items() for factor in [rng.uniform(0.5, 2.0)]}
    for seed in range(3):
        assert search(space, rises, truth, seed)[0] > search(space, None, truth, seed)[0]


def test_candidates_depend_on_seed_and_scores_only_and_meet_the_budget() -> None:
    space = toys.space(0.6)
    rises = table(space)
    one, two, other = (search(space, rises, rises, seed)[1] for seed in (0, 0, 1))
    assert one == two != other
    for arch in one:
        toys.assert_meets(space, arch)
    assert len(set(one)) == len(one)


def test_an_objective_without_a_score_is_not_learnt_from() -> None:
    space = toys.space(0.6)
    settings_ = SearchSettings(population=6, elites=2, iterations=3, init="uniform")
    prior = Prior([[1.0, 1.0]] * 8, rises=table(space))
    strategy = Guided(space, settings_, prior=prior)
    batch = strategy.ask()
    assert batch is not None
    strategy.tell(batch, [float("-inf")] * len(batch.proposals))
    following = strategy.ask()
    assert following is not None and following.proposals
    assert strategy._tabled is not None and strategy._tabled.posterior.unit == 1.0


def test_a_table_takes_the_place_of_the_importance_prior() -> None:
    space = toys.space(0.6)
    ratios = [[1.0 + i] * 2 for i in range(8)]
    wanted = space.profile(ratios)
    prior = Prior(ratios)
    settings_ = SearchSettings(population=6, elites=2, iterations=1, init="uniform")
    for rises, times in ((None, 1), (table(space), 0)):
        batch = Guided(space, settings_, prior=replace(prior, rises=rises)).ask()
        assert batch is not None
        assert [p.candidate for p in batch.proposals].count(wanted) == times  # type: ignore[arg-type]
