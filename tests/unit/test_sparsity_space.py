"""The genome of unstructured pruning drives the same evolution; every candidate meets the global share."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import Memory

from tracenas.errors import UserError
from tracenas.space.sparsity import Shares, SparsitySpace
from tracenas.strategies import STRATEGIES, Score, SearchSettings, run_search

SIZES = [[("attention", 4000), ("mlp", 9000)]] * 5


def space(share: float = 0.5, **options: float) -> SparsitySpace:
    return SparsitySpace(SIZES, share, 100_000, **options)


def mean(shares: Shares) -> float:
    sizes = dict(SIZES[0])
    total = sum(sizes.values()) * len(SIZES)
    return sum(value * sizes[name] for (_, name), value in shares.by_key().items()) / total


@settings(deadline=None, max_examples=60)
@given(st.sampled_from([0.1, 0.5, 0.7, 0.9]), st.integers(0, 10_000))
def test_every_candidate_meets_the_global_share(share: float, seed: int) -> None:
    s = space(share)
    rng = np.random.default_rng(seed)
    a, b = s.sample(rng), s.sample(rng)
    assert a is not None and b is not None
    child = s.repair(s.mutate(s.crossover(a, b, rng), rng, depth=1.0, width=1.0, sigma=0.5), rng)
    for one in (a, b, child, s.uniform(), s.profile([[1.0, 0.5]] * 5)):
        assert one is not None
        assert share - 1e-9 <= mean(one) <= share + 0.002
        assert all(share - 0.25 <= v <= share + 0.25 and 0 <= v < 1 for v in one.by_key().values())
        assert s.repair(one, rng) == one
        assert s.parameters(one) == 100_000 - round(mean(one) * 65_000)


def test_json_round_trip_and_best_json() -> None:
    a = space().sample(np.random.default_rng(0))
    assert a is not None
    assert Shares.from_json(a.to_json()) == a == Shares.from_json({"architecture": a.to_json(), "score": 1.0})
    assert Shares.from_json({"layers": [{"attention": 0.5, "mlp": 0.6}]}).by_key() == {
        (0, "attention"): 0.5,
        (0, "mlp"): 0.6,
    }


@pytest.mark.parametrize(
    "data", [[], {"layers": []}, {"layers": [3]}, {"layers": [{"mlp": 1.0}]}, {"layers": [{"mlp": True}]}, {"rows": []}]
)
def test_other_json_is_refused(data: object) -> None:
    with pytest.raises(UserError):
        Shares.from_json(data)


def test_shares_of_another_model_are_refused() -> None:
    with pytest.raises(UserError, match="1 layers, the model has 5"):
        space().check(Shares.from_json({"layers": [{"mlp": 0.5}]}), where="x")
    with pytest.raises(UserError, match="layer 0 must name attention, mlp"):
        space().check(Shares.from_json({"layers": [{"mlp": 0.5}] * 5}), where="x")


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_share_that_leaves_nothing_to_search_is_refused(share: float) -> None:
    with pytest.raises(UserError):
        space(share)


@pytest.mark.parametrize("name", ["evolution", "random", "uniform"])
def test_the_strategies_of_the_structured_search_drive_it(name: str) -> None:
    s = space()

    def toy(candidates: list[Shares]) -> Iterator[Score]:
        for c in candidates:  # the MLP is worth more
            yield Score(-sum(v * (1 if n == "mlp" else 0.1) for (_, n), v in c.by_key().items()), loss=1.0)

    made = STRATEGIES.get(name)(s, SearchSettings(10, 3, 5, init="uniform", seed=1))
    result = run_search(made, toy, Memory())
    uniform = s.uniform()
    assert uniform is not None
    assert name == "random" or result.score >= -sum(
        v * (1 if n == "mlp" else 0.1) for (_, n), v in uniform.by_key().items()
    )
