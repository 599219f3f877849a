import dataclasses
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toys
from test_search_evolution import flaky
from toys import Memory, Toy

from tracenas.errors import UserError
from tracenas.journal import Journal
from tracenas.space import Architecture, SearchSpace
from tracenas.strategies import STRATEGIES, Progress, Score, SearchSettings, generations, run_search
from tracenas.strategies.evolution import Evolution
from tracenas.strategies.score import jsonable

SMALL = SearchSettings(population=6, elites=2, iterations=4, init="uniform")
SPACE = toys.space(0.6)


class Interrupted(Exception):
    """Stands in for SIGKILL."""


def timeless(records: list[dict[str, Any]]) -> list[str]:
    """Records as they are written, without their seconds."""
    return [json.dumps({k: v for k, v in r.items() if k != "seconds"}) for r in records]


def run(
    journal: Any,
    *,
    stop: int | None = None,
    space: SearchSpace = SPACE,
    name: str = "evolution",
    settings: SearchSettings = SMALL,
) -> Any:
    """A run that is interrupted before its evaluation number `stop`."""
    toy = Toy(space)

    def evaluate(candidates: list[Architecture]) -> Iterator[Score]:
        for score in toy(candidates):
            if stop is not None and sum(toy.calls.values()) > stop:
                raise Interrupted
            yield score

    return run_search(STRATEGIES.get(name)(space, settings), evaluate, journal)


@pytest.mark.parametrize(("name", "kind"), [("evolution", "plain"), ("evolution", "flaky"), ("random", "plain")])
def test_a_run_interrupted_anywhere_resumes_to_the_same_journal(name: str, kind: str, tmp_path: Path) -> None:
    space = flaky(SPACE) if kind == "flaky" else SPACE
    whole = Memory()
    expected = run(whole, space=space, name=name)
    reference = timeless(whole.records)
    for stop in range(expected.evaluated):
        journal = Journal(tmp_path / f"{stop}.jsonl")
        with pytest.raises(Interrupted):
            run(journal, stop=stop, space=space, name=name)
        assert timeless(journal.read()) == reference[: len(journal.read())]
        result = run(Journal(journal.path), space=space, name=name)
        assert timeless(Journal(journal.path).read()) == reference
        assert (result.best, result.score) == (expected.best, expected.score)
        assert result.generations == expected.generations


def test_a_run_interrupted_again_and_again() -> None:
    whole, pieces = Memory(), Memory()
    run(whole)
    for _ in range(len(whole.records) // 3 + 1):
        before = len(pieces.records)
        try:
            run(pieces, stop=3)
        except Interrupted:
            assert len(pieces.records) == before + 3
    assert timeless(pieces.records) == timeless(whole.records)


def test_a_finished_run_evaluates_nothing() -> None:
    memory = Memory()
    first = run(memory)
    again = run(memory, stop=0)
    assert (again.best, again.score, again.generations) == (first.best, first.score, first.generations)
    assert again.records == first.records


@pytest.mark.parametrize("cut", [1, 2, 40, 10_000])
def test_a_truncated_last_line_is_evaluated_again(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    run(Journal(path))
    reference = timeless(Journal(path).read())
    raw = path.read_bytes()
    last = len(raw.splitlines(keepends=True)[-1])
    path.write_bytes(raw[: len(raw) - min(cut, last - 1)])
    assert len(Journal(path).read()) == len(reference) - 1
    run(Journal(path))
    assert timeless(Journal(path).read()) == reference


def test_a_corrupt_middle_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    run(Journal(path))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:4], lines[4][:30] + b"\n", *lines[5:]]))
    with pytest.raises(UserError, match="line 5 is corrupt"):
        run(Journal(path))


def other(records: list[dict[str, Any]], line: int, **changes: Any) -> Memory:
    changed = [dict(r) for r in records]
    changed[line - 1].update(changes)
    return Memory(changed)


def test_the_journal_of_another_run_is_refused() -> None:
    memory = Memory()
    run(memory)
    with pytest.raises(UserError, match=r"journal.jsonl: line 2: .* of another run"):
        run(memory, settings=dataclasses.replace(SMALL, seed=1))
    with pytest.raises(UserError, match="line 15: this run ends before"):
        run(memory, settings=dataclasses.replace(SMALL, iterations=3))
    with pytest.raises(UserError, match="line 9: candidate x of generation 1"):
        run(other(memory.records, 9, id="x"))
    with pytest.raises(UserError, match="line 9: candidate .* of generation 2, where this run has"):
        run(other(memory.records, 9, generation=2))
    with pytest.raises(UserError, match="line 3: 'score' must be a number or null, found 'good'"):
        run(other(memory.records, 3, score="good"))
    headless = Memory([{k: v for k, v in r.items() if k != "status"} for r in memory.records])
    with pytest.raises(UserError, match="line 1: no 'status'"):
        run(headless)


def test_a_journal_with_other_scores_leads_elsewhere_and_is_noticed() -> None:
    memory = Memory()
    run(memory)
    worst = min(range(6), key=lambda i: memory.records[i]["score"])
    with pytest.raises(UserError, match="of another run"):
        run(other(memory.records, worst + 1, score=99.0))


def test_record_fields() -> None:
    memory = Memory()
    result = run(memory)
    for record in memory.records:
        assert list(record) == [
            "id",
            "generation",
            "arch",
            "params",
            "score",
            "loss",
            "seconds",
            "status",
            "rho",
        ]
        assert record["status"] == "ok"
        assert record["loss"] == 1.0
        assert record["rho"] == [0.5, None]
        assert record["seconds"] >= 0
    assert result.record == max(memory.records, key=lambda r: r["score"])
    assert json.loads(json.dumps(memory.records, allow_nan=False)) == memory.records


def test_the_evaluators_own_seconds_are_recorded() -> None:
    memory = Memory()
    run_search(Evolution(SPACE, SMALL), lambda cs: [Score(float(i), seconds=7.5) for i, _ in enumerate(cs)], memory)
    assert {r["seconds"] for r in memory.records} == {7.5}


def test_every_result_is_recorded_before_the_next_is_awaited() -> None:
    memory = Memory()
    lengths = []

    def evaluate(candidates: list[Architecture]) -> Iterator[Score]:
        for _ in candidates:
            lengths.append(len(memory.records))
            yield Score(1.0)

    run_search(Evolution(SPACE, SMALL), evaluate, memory)
    assert lengths == list(range(len(memory.records)))


def test_results_do_not_depend_on_how_candidates_are_evaluated() -> None:
    toy = Toy(SPACE)
    journals = [Memory(), Memory(), Memory()]
    with ThreadPoolExecutor(3) as pool:
        evaluators = [
            toy,
            lambda cs: [Score(toy.value(c), loss=1.0, extra={"rho": [0.5, None]}) for c in cs],
            lambda cs: pool.map(lambda c: Score(toy.value(c), loss=1.0, extra={"rho": [0.5, None]}), cs),
        ]
        for evaluate, journal in zip(evaluators, journals, strict=True):
            run_search(Evolution(SPACE, SMALL), evaluate, journal)
    assert timeless(journals[0].records) == timeless(journals[1].records) == timeless(journals[2].records)


def test_a_failed_candidate_costs_that_candidate_only() -> None:
    toy = Toy(SPACE)

    def evaluate(candidates: list[Architecture]) -> Iterator[Score]:
        for i, (arch, score) in enumerate(zip(candidates, toy(candidates), strict=True)):
            if i == 0:
                yield Score(float("nan"), loss=float("inf"), extra={"rho": [float("nan"), 1.0]})
            elif i == 1:
                yield Score.failed(f"out of memory at {arch.id}")
            else:
                yield score

    memory = Memory()
    result = run_search(Evolution(SPACE, SMALL), evaluate, memory)
    failed = [r for r in memory.records if r["status"] == "failed"]
    assert len(failed) == 2 * SMALL.iterations
    assert failed[0]["reason"] == "the score is not finite"
    assert failed[0]["score"] is failed[0]["loss"] is None
    assert failed[0]["rho"] == [None, 1.0]
    assert failed[1]["reason"] == f"out of memory at {failed[1]['id']}"
    assert np.isfinite(result.score)
    assert not {r["id"] for r in failed} & {e for g in result.generations for e in g.elites}
    assert [g.failed for g in result.generations] == [2] * SMALL.iterations
    resumed = run_search(Evolution(SPACE, SMALL), toy, memory)
    assert resumed.generations == result.generations


def test_a_run_in_which_nothing_can_be_scored_says_why() -> None:
    with pytest.raises(UserError, match="none of the first 6 candidates .* CUDA out of memory"):
        run_search(Evolution(SPACE, SMALL), lambda cs: [Score.failed("CUDA out of memory") for _ in cs], Memory())


@pytest.mark.parametrize(("extra", "message"), [(-1, "5 scores for 6 candidates"), (1, "more scores")])
def test_an_evaluator_that_miscounts_is_a_defect(extra: int, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        run_search(Evolution(SPACE, SMALL), lambda cs: [Score(1.0) for _ in range(len(cs) + extra)], Memory())


def test_the_evaluators_generator_is_closed_when_the_journal_cannot_be_written() -> None:
    closed = []

    def evaluate(candidates: list[Architecture]) -> Iterator[Score]:
        try:
            for _ in candidates:
                yield Score(1.0)
        finally:
            closed.append(True)

    class Full(Memory):
        def append(self, record: Any) -> None:
            raise UserError("cannot write journal.jsonl: No space left on device")

    with pytest.raises(UserError, match="No space left") as error:
        run_search(Evolution(SPACE, SMALL), evaluate, Full())
    assert closed == [True]  # now, not when the traceback lets go of the generator
    assert error.traceback


def test_progress_events() -> None:
    events: list[Progress] = []
    memory = Memory()
    result = run_search(Evolution(SPACE, SMALL), Toy(SPACE), memory, on_event=events.append)
    per_candidate = [e for e in events if e.record is not None]
    assert [e.record for e in per_candidate] == memory.records
    assert [e.done for e in per_candidate] == list(range(1, len(memory.records) + 1))
    ends = [e for e in events if e.record is None]
    assert [e.generation for e in ends] == [0, 1, 2, 3]
    assert all(e.generations == 4 and e.planned == 18 for e in events)
    bests = [e.best for e in per_candidate if e.best is not None]
    assert bests == np.maximum.accumulate([r["score"] for r in memory.records]).tolist()
    last = events[-1]
    assert last.done + last.duplicates == last.planned
    assert (last.best, last.best_id) == (result.score, result.best.id)
    assert list(last.elites) == sorted((r["score"] for r in memory.records), reverse=True)[:2]
    assert last.eta == 0
    assert all(e.per_second is not None and e.per_second > 0 for e in per_candidate)
    replayed: list[Progress] = []
    run_search(Evolution(SPACE, SMALL), Toy(SPACE), memory, on_event=replayed.append)
    assert [e.done for e in replayed] == [e.done for e in ends]
    assert all(e.per_second is None and e.eta is None for e in replayed)


def test_populations_are_rebuilt_from_the_journal() -> None:
    """`generations` knows the elites that the strategy really bred from, and their statistics."""
    strategy: Evolution[Architecture] = Evolution(SPACE, SMALL)
    toy, memory, bred = Toy(SPACE), Memory(), []
    tell = strategy.tell

    def spy(batch: Any, scores: Any) -> None:
        tell(batch, scores)
        bred.append(tuple(c.id for c in strategy.elites))

    strategy.tell = spy  # type: ignore[method-assign]
    result = run_search(strategy, toy, memory)
    rebuilt = generations(memory.records, SMALL.population, SMALL.elites)
    assert [g.elites for g in rebuilt] == bred
    assert [dataclasses.replace(g, width_variance=None) for g in result.generations] == rebuilt
    value = {r["id"]: r["score"] for r in memory.records}
    ratios = {r["id"]: np.ravel(SPACE.ratios(Architecture.from_json(r["arch"]))) for r in memory.records}
    for g, whole in zip(rebuilt, result.generations, strict=True):
        scores = [value[name] for name in g.population]
        assert len(set(g.population)) == len(g.population) == SMALL.population - g.duplicates
        if g.generation:
            assert g.population[:2] == rebuilt[g.generation - 1].elites
        assert g.best == max(scores)
        assert g.mean == pytest.approx(np.mean(scores))
        assert g.variance == pytest.approx(np.var(scores))
        assert g.mean_elites == pytest.approx(np.mean(sorted(scores)[-2:]))
        widths = np.array([ratios[name] for name in g.population])
        assert whole.width_variance == pytest.approx(widths.var(axis=0).mean())
    bests = [g.best for g in rebuilt]
    assert bests == sorted(bests)  # type: ignore[type-var]
    assert json.loads(json.dumps(result.generations[1].to_json()))["elites"] == list(rebuilt[1].elites)


def test_generations_of_nothing_and_of_failures() -> None:
    assert generations([], 6, 2) == []
    failed = [{"id": "a", "generation": 0, "score": None, "status": "failed"}]
    (only,) = generations(failed, 6, 2)
    assert (only.best, only.mean, only.variance, only.mean_elites) == (None, None, None, None)
    assert (only.failed, only.new, only.duplicates, only.elites) == (1, 1, 5, ())


def test_the_earlier_candidate_stays_an_elite_on_a_tie() -> None:
    records = [
        {"id": name, "generation": g, "score": 1.0, "status": "ok"}
        for g, names in enumerate(["abc", "d"])
        for name in names
    ]
    assert [g.elites for g in generations(records, 3, 2)] == [("a", "b"), ("a", "b")]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_scores_that_are_not_finite_are_failures(value: float) -> None:
    score = Score(value, loss=float("nan"))
    assert (score.score, score.loss, score.ok) == (float("-inf"), None, False)
    assert score.reason == "the score is not finite"
    assert Score(value, reason="overflow").reason == "overflow"
    assert Score(1).ok


def test_score_refuses_the_journals_own_fields() -> None:
    with pytest.raises(ValueError, match="extra field 'id'"):
        Score(1.0, extra={"id": 3})


def test_plain_json() -> None:
    value = {"a": np.float32(0.5), "b": np.array([1, 2]), "c": (np.inf, 1.0), 3: [float("nan")], "d": np.nan}
    assert jsonable(value) == {"a": 0.5, "b": [1, 2], "c": [None, 1.0], "3": [None], "d": None}
    assert jsonable({"t": True, "n": None, "s": "x"}) == {"t": True, "n": None, "s": "x"}


def test_elites_and_records_are_told_before_every_generation_also_when_resumed() -> None:
    seen: dict[str, list[list[str]]] = {"whole": [], "resumed": []}
    journal = Memory()
    for name in seen:
        toy = Toy(SPACE)
        strategy = STRATEGIES.get("evolution")(SPACE, SMALL)
        kept = Memory()
        kept.records = journal.records[:8] if name == "resumed" else journal.records

        def told(elites: Any, records: Any, to: list[list[str]] = seen[name]) -> None:
            to.append([r["id"] for r in (*elites, *records)])

        run_search(strategy, toy, kept, on_generation=told)
    assert seen["whole"] == seen["resumed"]
    assert [len(ids) - len(set(ids)) for ids in seen["whole"]] == [0, 2, 2, 2]
    assert seen["whole"][-1][2:] == [r["id"] for r in journal.records[: len(seen["whole"][-1]) - 2]]


@pytest.mark.parametrize("name", ["evolution", "random"])
def test_evaluations_end_a_search_within_a_generation(name: str) -> None:
    whole, cut = Memory(), Memory()
    run(whole, name=name)
    found = run(cut, name=name, settings=dataclasses.replace(SMALL, evaluations=9))
    assert timeless(cut.records) == timeless(whole.records)[:9]
    assert found.evaluated == 9 and len(found.generations) == 2
    assert found.best.id == max(whole.records[:9], key=lambda r: r["score"])["id"]
    again = run(cut, name=name, settings=dataclasses.replace(SMALL, evaluations=9), stop=0)
    assert again.best == found.best and again.generations == found.generations


@pytest.mark.parametrize("begun", [0, 7])
def test_nobody_is_evaluated_beyond_the_last_of_a_search(begun: int, tmp_path: Path) -> None:
    settings, asked = dataclasses.replace(SMALL, evaluations=9), 0

    def together(candidates: list[Architecture]) -> list[Score]:
        nonlocal asked
        asked += len(candidates)
        return list(Toy(SPACE)(candidates))

    whole = Memory()
    run(whole, settings=settings)
    journal = Journal(tmp_path / "journal.jsonl")
    for record in whole.records[:begun]:
        journal.append(record)
    run_search(STRATEGIES.get("evolution")(SPACE, settings), together, journal)
    assert asked == 9 - begun
    assert timeless(journal.read()) == timeless(whole.records)


def test_enough_ends_a_search_and_its_length_replays_it() -> None:
    memory, answers = Memory(), iter([False] * 8 + [True] * 100)
    strategy = STRATEGIES.get("evolution")(SPACE, SMALL)
    asked = run_search(strategy, Toy(SPACE), memory, enough=lambda: next(answers))
    count = len(memory.records)
    assert SMALL.population < count < SMALL.planned and asked.evaluated == count
    replayed = run(memory, settings=dataclasses.replace(SMALL, evaluations=count), stop=0)
    assert (replayed.best, replayed.generations) == (asked.best, asked.generations)


def test_a_search_never_ends_before_a_candidate_has_a_score() -> None:
    found = run_search(STRATEGIES.get("evolution")(SPACE, SMALL), Toy(SPACE), Memory(), enough=lambda: True)
    assert found.evaluated == 1


def test_a_candidate_is_scored_before_the_next_one_is_drawn() -> None:
    class Counting(Evolution[Architecture]):
        drawn = 0

        def _child(self, rng: np.random.Generator) -> Any:
            self.drawn += 1
            return super()._child(rng)

    strategy, drawn, toy = Counting(SPACE, SMALL), list[int](), Toy(SPACE)

    def evaluate(candidates: Sequence[Architecture]) -> Iterator[Score]:
        for candidate in candidates:
            drawn.append(strategy.drawn)
            yield from toy([candidate])

    result = run_search(strategy, evaluate, Memory())
    second = [n for n, record in zip(drawn, result.records, strict=True) if record["generation"] == 1]
    assert second == sorted(set(second)) and second[0] == 1
    assert result.evaluated == run(Memory()).evaluated
