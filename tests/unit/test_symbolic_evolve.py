"""Genetic programming: distinct simplified programs, determinism, resume, stagnation, worker processes."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from toys import Memory

from tracenas.errors import UserError
from tracenas.journal import Journal
from tracenas.strategies import Score, SearchSettings, run_search
from tracenas.symbolic import parse
from tracenas.symbolic.analysis import correlations, front, spearman, usage
from tracenas.symbolic.evolve import GeneticProgramming, Programming
from tracenas.symbolic.grammar import ExpressionSpace, Program
from tracenas.symbolic.simplify import simplify
from tracenas.worker_pool import WorkerPool

SMALL = SearchSettings(population=12, elites=2, iterations=6, crossover=0.5, init="random", seed=3)


def strategy(settings: SearchSettings = SMALL, **programming: Any) -> GeneticProgramming:
    return GeneticProgramming(ExpressionSpace(max_nodes=12), settings, Programming(**programming))


def toy(programs: list[Program]) -> Iterator[Score]:
    """Rewards W, X and few nodes; fails where G is alone."""
    for program in programs:
        e = program.expression
        if e.variables == {"G"}:
            yield Score.failed("reads G only", seconds=0.0)
            continue
        loss = 5 - 2 * ("W" in e.variables) - ("X" in e.variables) + 0.1 * e.nodes
        yield Score(-loss, loss=loss, seconds=0.0, extra={"lost": {"weight": loss / 10}})


def test_programs_are_simplified_distinct_and_small() -> None:
    result = run_search(strategy(), toy, Memory())
    texts = [r["arch"]["metric"] for r in result.records]
    assert len(set(texts)) == len(texts)
    for text in texts:
        e = parse(text)
        assert simplify(e) == e and e.nodes <= 12 and e.variables
    assert result.evaluated == SMALL.planned - result.duplicates
    best = [g.best for g in result.generations if g.best is not None]
    assert best == sorted(best)


def test_search_finds_a_simple_product() -> None:
    settings = SearchSettings(population=40, elites=4, iterations=10, crossover=0.5, init="random", seed=0)
    result = run_search(strategy(settings), toy, Memory())
    assert result.best.expression.variables >= {"W", "X"} and result.best.expression.nodes <= 3


def test_initial_depths_are_between_2_and_4() -> None:
    space = ExpressionSpace(max_nodes=99)
    rng = np.random.default_rng(0)
    trees = [space._tree(rng, int(rng.integers(2, 5)), grow=bool(i % 2)) for i in range(200)]
    assert {t.depth for t in trees} == {2, 3, 4}


@pytest.mark.parametrize("stop", [1, 12, 30])
def test_a_resumed_search_equals_the_undisturbed_one(tmp_path: Path, stop: int) -> None:
    whole = run_search(strategy(), toy, Journal(tmp_path / "whole.jsonl"))
    lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "part.jsonl").write_bytes(b"".join(lines[:stop]) + lines[stop][:7])  # cut off within a line
    again = run_search(strategy(), toy, Journal(tmp_path / "part.jsonl"))
    assert (tmp_path / "part.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert again.best == whole.best


def test_equal_scores_count_as_one_program_the_simplest() -> None:
    gp = strategy()
    batch = gp.ask()
    assert batch is not None
    gp.tell(batch, [float(i // 3) for i in range(len(batch.proposals))])
    assert [score for score, _ in gp._population] == [3.0, 2.0, 1.0, 0.0]
    for i, (_, program) in enumerate(reversed(gp._population)):
        rivals = [p.candidate.expression.nodes for p in batch.proposals[3 * i : 3 * i + 3]]
        assert program.expression.nodes == min(rivals)


def test_patience_ends_a_stagnating_search() -> None:
    def flat(programs: list[Program]) -> Iterator[Score]:
        yield from (Score(1.0, loss=1.0) for _ in programs)

    result = run_search(strategy(patience=2), flat, Memory())
    assert len(result.generations) == 3


def test_failed_metrics_score_worst_and_are_recorded() -> None:
    seeds = [Program(parse("mms(G)")), Program(parse("W * X"))]
    settings = SearchSettings(population=4, elites=1, iterations=2, init="random")
    gp = GeneticProgramming(ExpressionSpace(), settings, Programming(), seeds=seeds)
    result = run_search(gp, toy, Memory())
    assert result.records[0]["status"] == "failed" and result.records[0]["score"] is None
    assert result.best.expression != parse("mms(G)")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Programming(tournament=0),
        lambda: Programming(mutation=1.5),
        lambda: Programming(patience=0),
        lambda: ExpressionSpace(("W", "Q")),
        lambda: ExpressionSpace(()),
        lambda: ExpressionSpace(max_nodes=1),
    ],
)
def test_impossible_settings_are_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(UserError):
        make()


def test_the_pool_keeps_order_and_survives_dying_workers(tmp_path: Path) -> None:
    with WorkerPool("pool_worker:build", str(tmp_path / "seen"), 2, start="spawn") as pool:
        first = list(pool.map([3, "fail", "die once", 4, "die", 5]))
        second = list(pool.map([6]))
    assert first == [
        {"result": 9},
        {"error": "ValueError: as asked"},
        {"result": "die once"},
        {"result": 16},
        {"error": "its process died 3 times (exit status 1)"},
        {"result": 25},
    ]
    assert second == [{"result": 36}]


def test_front_usage_and_correlation() -> None:
    result = run_search(strategy(), toy, Memory())
    chosen = front(result.records)
    for record in result.records:
        if record["score"] is not None:
            assert any(c["params"] <= record["params"] and c["loss"] <= record["loss"] for c in chosen)
    assert [c["params"] for c in chosen] == sorted({c["params"] for c in chosen})
    scored = [(parse(r["arch"]["metric"]), r["loss"]) for r in result.records if r["score"] is not None]
    by_name = {u.name: u for u in usage(scored)}
    assert by_name["W"].share == sum("W" in e.variables for e, _ in scored) / len(scored)
    assert by_name["W"].share_best >= by_name["W"].share
    found = correlations(result.records)
    assert math.isclose(found["weight"]["spearman"], 1.0)
    json.dumps([u.to_json() for u in by_name.values()], allow_nan=False)


def test_spearman_agrees_with_scipy() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, 40), rng.normal(size=40)
    assert spearman(x.tolist(), y.tolist()) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert spearman([1, 1, 1], [1, 2, 3]) is None
