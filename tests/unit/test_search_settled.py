"""A search ends once its last generations find nothing better beyond the noise, and goes on while they do."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import toys

from tracenas.errors import UserError
from tracenas.journal import Journal
from tracenas.space import Architecture
from tracenas.strategies import Score, SearchResult, SearchSettings, replayed, run_search
from tracenas.strategies.evolution import Evolution
from tracenas.strategies.settled import settled

SPACE = toys.space(0.6)
PATIENT = SearchSettings(population=6, elites=2, iterations=12, init="uniform", patience=2)


def record(generation: int, score: float | None, terms: list[float] | None = None) -> dict[str, object]:
    return {"generation": generation, "score": score, **({} if terms is None else {"terms": terms})}


def terms_of(mean: float, *spread: float) -> list[float]:
    """Losses per sequence with this mean."""
    around = np.array(spread) - np.mean(spread)
    return (mean + around).tolist()


@pytest.mark.parametrize("patience", [None, 0])
def test_without_patience_nothing_settles(patience: int | None) -> None:
    assert settled([record(0, 1.0), record(1, 0.5)], 2, patience) is None


def test_it_takes_as_many_generations_as_patience_says() -> None:
    records = [record(0, -3.0), record(1, -4.0), record(2, None)]
    assert settled(records[:2], 2, 2) is None
    found = settled(records, 3, 2)
    assert found is not None and (found.generations, found.gain, found.error) == (2, 0.0, None)
    assert str(found) == "the last 2 generations found nothing better"


def test_a_gain_counts_only_beyond_the_noise_of_the_pairs() -> None:
    before = record(0, -3.0, terms_of(3.0, 0.1, -0.1, 0.3, -0.3))
    clear = record(1, -2.9, terms_of(2.9, 0.1, -0.1, 0.3, -0.3))
    assert settled([before, clear], 2, 1) is None
    noisy = record(1, -2.9, terms_of(2.9, 0.5, 0.4, -0.4, -0.5))
    found = settled([before, noisy], 2, 1)
    assert found is not None and found.gain == pytest.approx(0.1)
    d = np.array(noisy["terms"]) - np.array(before["terms"])  # type: ignore[arg-type]
    assert found.error == pytest.approx(d.std(ddof=1) / 2)
    assert str(found).startswith("the last generation found nothing better beyond the noise (0.1 ± ")


def test_scores_without_terms_count_as_they_are() -> None:
    assert settled([record(0, 1.0), record(1, 1.0 + 1e-9)], 2, 1) is None
    assert settled([record(0, 1.0), record(1, 1.0)], 2, 1) is not None


def test_steps_that_add_up_within_the_last_generations_are_a_gain() -> None:
    spread = (0.1, -0.1, 0.3, -0.3)
    noise = [(0.0, 0.0, 0.0, 0.0), (0.04, -0.04, 0.0, 0.0), (0.04, -0.04, 0.01, -0.01)]
    records = [
        record(g, -3.0 + 0.03 * g, terms_of(3.0 - 0.03 * g, *(a + b for a, b in zip(spread, noise[g], strict=True))))
        for g in range(3)
    ]
    assert settled(records[:2], 2, 1) is not None
    assert settled(records, 3, 2) is None


def constant(candidates: list[Architecture]) -> Iterator[Score]:
    """Nothing is better than anything else."""
    for _ in candidates:
        yield Score(-1.0, loss=1.0, seconds=0.0, extra={"terms": [0.9, 1.1]})


def improving(candidates: list[Architecture]) -> Iterator[Score]:
    """Every candidate is clearly better than the one before it."""
    for candidate in candidates:
        _IMPROVED.setdefault(candidate.id, len(_IMPROVED))
        yield Score(float(_IMPROVED[candidate.id]), seconds=0.0)


_IMPROVED: dict[str, int] = {}


def run(path: Path, evaluate: object = constant, settings: SearchSettings = PATIENT) -> SearchResult[Architecture]:
    return run_search(Evolution(SPACE, settings), evaluate, Journal(path))  # type: ignore[arg-type]


def test_a_search_that_stands_still_ends_and_says_so(tmp_path: Path) -> None:
    result = run(tmp_path / "journal.jsonl")
    assert len(result.generations) == 3
    assert len(result.records) == 6 + 2 * 4
    assert result.settled is not None and result.settled.to_json()["generations"] == 2


def test_a_search_that_gains_goes_on_to_its_end(tmp_path: Path) -> None:
    result = run(tmp_path / "journal.jsonl", improving)
    assert len(result.generations) == 12
    assert result.settled is None


def test_its_size_is_the_limit_and_then_nothing_is_said(tmp_path: Path) -> None:
    sized = SearchSettings(population=6, elites=2, iterations=12, init="uniform", patience=2, evaluations=14)
    result = run(tmp_path / "journal.jsonl", constant, sized)
    assert len(result.records) == 14
    assert result.settled is None


@pytest.mark.parametrize("lines", [3, 6, 9, 13, 14])
def test_a_resumed_search_ends_where_the_undisturbed_one_does(tmp_path: Path, lines: int) -> None:
    whole = run(tmp_path / "whole.jsonl")
    cut = tmp_path / "cut.jsonl"
    cut.write_text("".join(line + "\n" for line in (tmp_path / "whole.jsonl").read_text().splitlines()[:lines]))
    resumed = run(cut)
    assert cut.read_text() == (tmp_path / "whole.jsonl").read_text()
    assert (resumed.best, resumed.settled) == (whole.best, whole.settled)


def test_a_journal_alone_says_that_it_ended(tmp_path: Path) -> None:
    result = run(tmp_path / "journal.jsonl")
    again = replayed(Evolution(SPACE, PATIENT), Journal(tmp_path / "journal.jsonl"), enough=lambda: True)
    assert again is not None and again.settled == result.settled


def test_a_journal_that_goes_on_behind_the_end_is_of_another_run(tmp_path: Path) -> None:
    endless = SearchSettings(population=6, elites=2, iterations=12, init="uniform")
    run(tmp_path / "journal.jsonl", constant, endless)
    with pytest.raises(UserError, match="line 15: this run ends before"):
        run(tmp_path / "journal.jsonl")


def test_negative_patience_is_refused() -> None:
    with pytest.raises(UserError, match="patience -1: accepted: 0 or more"):
        SearchSettings(patience=-1)
