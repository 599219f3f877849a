"""What effort, evaluations and minutes come to, and the clock of a search that ends by the time."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from tracenas.benchmark.machine import _SCHEDULED, Rates, _load, _scheduled
from tracenas.commands.search.clock import SearchClock
from tracenas.commands.search.settings import resolve_search, sized
from tracenas.config import PlanConfig, SearchConfig
from tracenas.demo import model_path
from tracenas.errors import UserError
from tracenas.models.checkpoints.source import open_source
from tracenas.pipeline.estimate import SearchEstimate, in_passes, search_shape
from tracenas.pipeline.minutes import spend
from tracenas.pipeline.target import resolve_target
from tracenas.proxies.combination import choose
from tracenas.strategies import SearchSettings

GIVEN = {"model": str(model_path()), "data": "text.txt", "params": "60%", "out": "o"}
RATES = Rates(
    flops=1e11,
    thin_flops=1e11,
    single_flops=1e11,
    double_flops=1e10,
    bytes=1e10,
    score_seconds=1e-8,
    score_seconds_forward=1e-9,
)


def sizes(**settings: Any) -> tuple[Any, ...]:
    config = sized(resolve_search(SearchConfig(**{**GIVEN, **settings}), open_source(GIVEN["model"])))
    planned = SearchSettings(
        config.population, config.elites, config.iterations, evaluations=config.evaluations
    ).planned
    return config.population, config.elites, config.iterations, planned, config.samples, config.longest


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (30, 10, 10, 210, 8, 512)),
        ({"effort": "quick"}, (12, 4, 7, 60, 4, 512)),
        ({"effort": "thorough"}, (30, 10, 50, 1010, 16, 2048)),
        ({"evaluations": 100}, (12, 4, 12, 100, 8, 512)),
        ({"evaluations": 8}, (8, 2, 1, 8, 8, 512)),
        ({"effort": "quick", "iterations": 2}, (12, 4, 2, 20, 4, 512)),
        ({"effort": "quick", "population": 20, "samples": 3}, (20, 6, 4, 62, 3, 512)),
        ({"evaluations": 100, "iterations": 3}, (12, 4, 3, 28, 8, 512)),
        ({"population": 30, "elites": 10, "iterations": 50}, (30, 10, 50, 1010, 8, 512)),
        ({"data": "tokens.safetensors"}, (30, 10, 10, 210, None, 512)),
    ],
)
def test_sizes(settings: dict[str, Any], expected: tuple[Any, ...]) -> None:
    assert sizes(**settings) == expected


@pytest.mark.parametrize("kind", [SearchConfig, PlanConfig])
def test_two_answers_are_refused(kind: Any) -> None:
    given = GIVEN if kind is SearchConfig else {"model": GIVEN["model"]}
    with pytest.raises(UserError, match="effort and minutes are two answers to one question"):
        kind(**given, effort="quick", minutes=3)


def test_fewer_evaluations_than_the_initial_population() -> None:
    with pytest.raises(UserError, match="evaluations 8: the initial population has 9"):
        sizes(evaluations=8, population=9)


def spent(minutes: float, rates: Rates = RATES, **given: Any) -> Any:
    source = open_source(GIVEN["model"])
    target = resolve_target(source, PlanConfig(model=GIVEN["model"]), params="60%")
    arch = target.space.uniform()
    assert arch is not None
    shape = in_passes(search_shape(source, 1, 512, None, device="cpu", dtype="fp32"), target)
    choice = choose("loss_compensated")
    options = {"samples": None, "statistics": None, **given}
    estimate = SearchEstimate(target, arch, choice, 64, rates, table=True)
    spending = spend(minutes, estimate, shape, **options)
    time = estimate.search(in_passes(replace(shape, samples=spending.samples), target), spending.statistics)
    return SimpleNamespace(**vars(spending), seconds=time.once + 0.7 * spending.evaluations * time.each, each=time.each)


def test_minutes_buy_text_once_there_are_enough_candidates() -> None:
    found = [spent(minutes) for minutes in (1, 4, 30)]
    assert [f.samples for f in found] == sorted(f.samples for f in found) and found[-1].samples == 16
    for minutes, f in zip((1, 4, 30), found, strict=True):
        assert f.seconds == pytest.approx(60 * minutes, rel=0.05)
    assert all(f.evaluations >= 100 or f.samples == 2 for f in found)
    assert spent(30, samples=3).samples == 3 and spent(30, statistics=5).statistics == 5


def test_little_time_is_not_spent_on_statistics() -> None:
    slow = replace(RATES, double_flops=1e8)
    once = spent(1000, slow).once
    assert spent(once / 60 * 1.5, slow).statistics < 48 == spent(1000, slow).statistics
    with pytest.raises(UserError, match=r"minutes 0.01: on this machine the statistics before the first candidate"):
        spent(0.01)


def test_beside_other_work_text_is_saved_and_candidates_are_left_to_the_clock() -> None:
    alone, busy, busier = (spent(1, replace(RATES, load=load)) for load in (1.0, 3.0, 50.0))
    assert (alone.samples, alone.statistics) == (8, 48)
    assert (busy.samples, busy.statistics) == (4, 24) and 3 * busy.once <= 60 / 2
    assert (busier.samples, busier.statistics) == (2, 12)  # not refused: the other work may end
    for f in (alone, busy, busier):
        assert f.seconds == pytest.approx(60, rel=0.05)


@pytest.mark.skipif(not _SCHEDULED.exists(), reason="the system does not say how long a thread has waited")
def test_waiting_for_a_processor_is_measured() -> None:
    """Two threads on one processor wait for each other half of the time."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    code = f"import os; os.sched_setaffinity(0, {{{min(allowed)}}})\nwhile True: pass"
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        end = time.monotonic() + 120
        load = 0.0
        while load < 1.3 and time.monotonic() < end:
            before, until = _scheduled(), time.monotonic() + 0.5
            while time.monotonic() < until:
                pass
            load = _load(before, _scheduled())
    finally:
        process.kill()
        process.wait()
        os.sched_setaffinity(0, allowed)
    assert load >= 1.3


def test_load_without_a_system_that_tells_it() -> None:
    assert _load((0, 0), (0, 0)) == 1.0 and _load((5, 7), (15, 17)) == 2.0 and _load((5, 7), (15, 7)) == 1.0


def test_the_clock_ends_half_a_candidate_early(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    clock = SearchClock(minutes=1.0)
    now[0] += 10  # model and statistics
    clock.go_on([{"seconds": 5.0}, {"seconds": None}, {}])
    assert not clock.enough() and clock.expected(2) is None
    for _ in range(4):
        now[0] += 10
        clock.count()
    assert clock.left == pytest.approx(5) and clock.expected(6) in (6, 7) and not clock.enough()
    now[0] += 0.1
    assert clock.enough()
    assert not SearchClock(minutes=None).enough()


def test_time_is_kept_for_what_follows_as_many_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one candidate there is nothing to decide, so that a short search does not end for want of time for it."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    clock = SearchClock(minutes=0.5)
    clock.go_on([], lambda count: 0.0 if count < 2 else 4.0 * count)
    for number, ended in ((1, False), (2, False), (3, True)):
        now[0] += 2
        clock.count()
        assert clock.enough() is ended, number
    assert clock.expected(3) == 3 and clock.left == pytest.approx(24)
