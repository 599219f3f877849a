"""Searches of a given number of evaluations and of given minutes, by the command line, on a tiny model."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import save_families

import tracenas
from tracenas.cli import invoke
from tracenas.commands.search.clock import SearchClock

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A tiny model and a text."""
    return save_families(tmp_path_factory.mktemp("effort"), ("llama",), tokenizer)


def search(home: Path, out: Path, *options: str) -> list[str]:
    where = ["search", str(home / "llama"), "--data", str(home / "text.txt"), "--out", str(out), "--params", "60%"]
    return [*where, "--seq-len", "32", "--threads", "1", "--channel-quantum", "8", "--start", "none", *options]


def timeless(run: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k != "seconds"} for r in records]


def test_evaluations_are_the_total(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(search(home, tmp_path / "run", "--evaluations", "17", "--samples", "2", "-v")) == 0
    assert "search: at most 17 candidates on 2 × 32 tokens, 12 per generation" in capsys.readouterr().err
    assert len(timeless(tmp_path / "run")) == 17
    assert invoke(search(home, tmp_path / "two", "--evaluations", "17", "--effort", "quick")) == 2
    assert "effort and evaluations are two answers to one question" in capsys.readouterr().err


@pytest.fixture
def candidates(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """So many candidates are enough, however long they take; and whether the time is really over, without that."""
    real = SearchClock.enough
    monkeypatch.setattr(SearchClock, "enough", lambda self: self._count >= 35)
    yield lambda: monkeypatch.setattr(SearchClock, "enough", real)


def test_minutes_end_a_search_that_can_be_replayed(candidates: Any, home: Path, tmp_path: Path) -> None:
    """A resumed one ends where it ended, and a search of as many evaluations is the same."""
    out = tmp_path / "run"
    assert invoke(search(home, out, "--minutes", "0.04")) == 0
    first, settings = timeless(out), yaml.safe_load((out / "config.yaml").read_text())
    assert settings["evaluations"] == len(first) == 35 > settings["population"]
    best = (out / "best.json").read_bytes()
    (out / "best.json").unlink()
    assert invoke(search(home, out, "--minutes", "0.04", "--resume")) == 0
    assert timeless(out) == first and json.loads((out / "best.json").read_text())["id"] == json.loads(best)["id"]
    same = {
        k: settings[k] for k in ("evaluations", "population", "elites", "iterations", "samples", "compensate_samples")
    }
    options = [part for k, v in same.items() if v is not None for part in (f"--{k.replace('_', '-')}", str(v))]
    assert invoke(search(home, tmp_path / "same", *options)) == 0
    assert timeless(tmp_path / "same") == first


def test_minutes_end_a_search_by_the_clock(home: Path, tmp_path: Path) -> None:
    assert invoke(search(home, tmp_path / "run", "--minutes", "0.04")) == 0
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert 1 <= settings["evaluations"] == len(timeless(tmp_path / "run")) < settings["population"] * 40


def test_an_interrupted_search_of_minutes_goes_on_with_what_is_left(
    candidates: Any, home: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert invoke(search(home, out, "--minutes", "0.04")) == 0
    candidates()
    lines = (out / "journal.jsonl").read_text().splitlines()
    settings = yaml.safe_load((out / "config.yaml").read_text())
    (out / "config.yaml").write_text(yaml.safe_dump({**settings, "evaluations": None}, sort_keys=False))
    slow = [json.dumps({**json.loads(line), "seconds": 100.0}) for line in lines[:4]]
    (out / "journal.jsonl").write_text("\n".join(slow) + "\n")
    assert invoke(search(home, out, "--minutes", "0.04", "--resume")) == 0
    assert len(timeless(out)) == len(slow) == yaml.safe_load((out / "config.yaml").read_text())["evaluations"]


def test_a_function_is_told_of_every_generation(home: Path, tmp_path: Path) -> None:
    told: list[Any] = []
    small: Any = {"seq_len": 32, "samples": 2, "threads": 1, "channel_quantum": 8, "start": "none"}
    found = tracenas.search(
        home / "llama",
        data=home / "text.txt",
        params="60%",
        out=tmp_path / "run",
        on_generation=told.append,
        population=4,
        elites=2,
        iterations=3,
        **small,
    )
    assert [(event.generation, event.record) for event in told] == [(0, None), (1, None), (2, None)]
    assert told[-1].best == found.score and told[-1].done == len(timeless(tmp_path / "run"))
