"""Statistics of a study, its pool of architectures, and its tables."""

from typing import Any

import numpy as np
import pytest

from tracenas.commands.study.combinations import parse_combinations, with_combination
from tracenas.commands.study.pool import draw_pool
from tracenas.config import StudyConfig
from tracenas.demo import model_path
from tracenas.errors import UserError
from tracenas.models.checkpoints.source import open_source
from tracenas.studies import StudyTarget, analyse, correlate, markdown, regret

RNG = 0


def related(x: list[float | None], y: list[float | None], **more: Any) -> Any:
    return correlate(x, y, np.random.default_rng(RNG), **more)


def test_equal_columns_are_undefined_and_say_which() -> None:
    equal, other = [1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 3.0, 4.0]
    assert related(equal, other).reason == "all scores are equal"
    assert related(other, equal).reason == "all targets are equal"
    assert related(equal, other).rho.value is None


def test_missing_values_leave_their_architecture_out() -> None:
    found = related([1.0, 2.0, None, 4.0, float("nan")], [1.0, 2.0, -9.0, 4.0, 5.0])
    assert (found.pairs, found.missing, found.rho.value) == (3, 2, 1.0)
    few = related([1.0, 2.0, None, None], [1.0, 2.0, 3.0, 4.0])
    assert few.rho.value is None
    assert few.reason == "2 of 4 architectures have both values, at least 3 are needed"


def test_too_few_architectures_are_refused() -> None:
    with pytest.raises(UserError, match="2 architectures: a correlation needs at least 3"):
        related([1.0, 2.0], [1.0, 2.0])


def test_intervals_hold_the_value_and_repeat() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=24)
    y = x + rng.normal(size=24)
    first = related(x.tolist(), y.tolist())
    assert first == related(x.tolist(), y.tolist())
    for estimate in (first.rho, first.tau):
        assert -1 <= estimate.low < estimate.value < estimate.high <= 1
    wide = related(x[:8].tolist(), y[:8].tolist()).rho
    assert wide.high - wide.low > first.rho.high - first.rho.low


@pytest.mark.parametrize(
    ("x", "y", "rho"),
    [
        ([1.0, 2.0, 3.0, 4.0, 5.0], [2.0, 4.0, 6.0, 8.0, 9.0], 1.0),  # every resample has the same coefficient
        ([1.0, 2.0, 3.0, 4.0, 5.0], [9.0, 8.0, 6.0, 4.0, 2.0], -1.0),
        ([1.0, 1.0, 1.0, 1.0, 2.0], [1.0, 2.0, 3.0, 5.0, 4.0], 0.354),  # constant without the last architecture
        ([1.0, 1.0, 2.0], [3.0, 2.0, 1.0], -0.866),
    ],
)
def test_intervals_that_bca_cannot_tell_are_undefined(x: list[float | None], y: list[float | None], rho: float) -> None:
    found = related(x, y)
    assert found.reason is None
    assert found.rho.value == pytest.approx(rho, abs=1e-3)
    assert (found.rho.low, found.rho.high, found.tau.low, found.tau.high) == (None,) * 4


def test_regret_of_the_first_choice() -> None:
    losses = [3.0, 2.0, 2.5, None]
    found = regret([0.1, 0.2, 0.9, 5.0], losses, uniform=0)
    assert found is not None
    assert (found.loss, found.to_best, found.to_uniform) == (2.5, 0.5, -0.5)
    assert found.to_json()["ratio_to_best"] == pytest.approx(np.exp(0.5))
    tied = regret([0.9, 0.9, 0.1, None], losses, uniform=0)
    assert tied is not None
    assert (tied.loss, tied.choices) == (2.5, 2)
    assert regret([None] * 4, losses, uniform=0) is None


def record(name: str, kind: str, scores: dict[str, float | None], loss: float | None) -> dict[str, Any]:
    failed = {k: "out of memory" for k, v in scores.items() if v is None}
    value = {"value": loss, "by_seed": [] if loss is None else [loss - 0.1, loss + 0.1]}
    return {"id": name, "kind": kind, "params": 7, "scores": scores, "reasons": failed, "targets": {"t": value}}


def records() -> list[dict[str, Any]]:
    rows = [("a", "uniform", 1.0, 5.0, 3.0), ("b", "random", 2.0, 5.0, 2.0), ("c", "mutation", 3.0, 5.0, 1.0)]
    out = [record(n, k, {"good": g, "flat": f}, loss) for n, k, g, f, loss in rows]
    return [*out, record("d", "random", {"good": None, "flat": 5.0}, 2.5)]


def test_analysis_counts_failures_and_keeps_nan_out() -> None:
    found = analyse(records(), {"good": 0.5, "flat": 0.1}, [StudyTarget("t", "loss")])
    good, flat = found["proxies"]
    assert good["failed"] == 1
    assert good["failures"] == [{"reason": "out of memory", "count": 1}]
    assert good["targets"]["t"]["rho"]["value"] == 1.0
    assert good["targets"]["t"]["regret"]["to_uniform"] == -2.0
    assert good["targets"]["t"]["rho_by_seed"] == [1.0, 1.0]
    assert flat["targets"]["t"]["reason"] == "all scores are equal"
    assert found["targets"][0]["seed_spread"] == pytest.approx(np.std([-0.1, 0.1], ddof=1))
    text = markdown({**found, "main_target": "t", "title": "toy", "protocol": "four"})
    assert "nan" not in text.lower()
    assert "flat with loss: undefined, all scores are equal" in text
    across = analyse(records(), {"good": 0.5}, [StudyTarget("t", "loss")], within_budget=False)
    assert across["proxies"][0]["targets"]["t"]["regret"] is None


def test_rank_flips_are_counted() -> None:
    rows = records()[:3]
    for row, loss in zip(rows, (1.0, 2.0, 1.5), strict=True):
        row["targets"]["u"] = {"value": loss, "by_seed": []}
    targets = [StudyTarget("t", "t", group="plain", steps=1), StudyTarget("u", "u", group="plain", steps=9)]
    (pair,) = analyse(rows, {"good": 0.5}, targets)["agreement"]
    assert (pair["flips"], pair["comparable"], pair["related"]) == (2, 3, True)


def test_a_combination_is_judged_from_the_scores_there_are() -> None:
    (choice,) = parse_combinations("loss=1,phi=3", ("loss", "phi"))
    rows = [record(str(i), "random", {"loss": float(i), "phi": -float(i)}, float(i)) for i in range(3)]
    rows.append(record("x", "random", {"loss": None, "phi": 0.0}, 1.0))
    found, costs = with_combination(rows, {"loss": 1.0, "phi": 2.0}, choice)
    assert costs["loss=1,phi=3"] == 3.0
    values = [r["scores"]["loss=1,phi=3"] for r in found]
    assert values[0] > values[1] > values[2]
    assert values[3] is None
    assert found[3]["reasons"]["loss=1,phi=3"] == "loss has no score"
    for text, message in (
        ("loss=1,kl=1", "'kl' is not among"),
        ("los=1,phi=1", "did you mean 'loss'"),
        ("phi", "weights"),
    ):
        with pytest.raises(UserError, match=message):
            parse_combinations(text, ("loss", "phi"))


def pool(**settings: Any) -> Any:
    config = StudyConfig(model=str(model_path()), data="x", text="x", out="x", **settings)
    target, drawn = draw_pool(open_source(config.model), config)
    return target.space, drawn


def test_a_pool_of_one_budget_holds_uniform_and_both_kinds() -> None:
    space, drawn = pool(params="60%", architectures=12, seed=3)
    assert [d.kind for d in drawn] == ["uniform", *["random", "mutation"] * 5, "random"]
    assert len({d.arch for d in drawn}) == 12
    low, high = space.window
    assert all(low <= space.cost(d.arch) <= high for d in drawn)
    assert pool(params="60%", architectures=12, seed=3)[1] == drawn
    assert pool(params="60%", architectures=12, seed=4)[1] != drawn


def test_a_pool_across_sizes_is_spread_over_them() -> None:
    space, drawn = pool(across_sizes=True, sizes="50%-90%", architectures=9)
    base = space.parameters(space.base)
    shares = [space.parameters(d.arch) / base for d in drawn]
    assert shares == sorted(shares)
    assert shares[0] == pytest.approx(0.5, abs=0.03)
    assert shares[-1] == pytest.approx(0.9, abs=0.03)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"params": "60%", "architectures": 2}, "at least 3"),
        ({}, "either params"),
        ({"params": "60%", "across_sizes": True}, "either params"),
        ({"across_sizes": True, "sizes": "90%-40%"}, "two ascending shares"),
        ({"across_sizes": True, "sizes": "half"}, "expected two shares"),
        ({"params": "1%"}, "below the smallest"),
    ],
)
def test_wrong_pools_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        pool(**settings)
