"""The table of rivals: paired differences, what is refused, and cells that are measured once."""

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
from benchmark_modules import load_benchmark
from tiny import save_tiny, save_words

RECORD = {"model": "m", "budget": "75%", "form": "refitted", "text": "t", "parameters": 5}


def cell(method: str, seed: int, losses: list[float]) -> dict[str, Any]:
    return {**RECORD, "method": method, "seed": seed, "losses": losses}


def test_differences_are_paired_over_windows_and_over_the_seeds_of_both() -> None:
    difference = load_benchmark("compare").difference
    ours = [cell("ours", 0, [1.0, 2.0, 3.0]), cell("ours", 1, [1.0, 2.0, 5.0])]
    row = [cell("row", 1, [1.5, 2.25, 5.0]), cell("row", 2, [9.0, 9.0, 9.0])]
    gaps = [0.5, 0.25, 0.0]
    error = statistics.stdev(gaps) / math.sqrt(3)
    assert difference(row, ours) == f"{statistics.mean(gaps):+.3f} ± {error:.3f}"
    assert difference(row[1:], ours) == "–"


class Table:
    """A tiny model, a text, and the program."""

    def __init__(self, home: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home, self.tokenizer, self.monkeypatch = home, tokenizer, monkeypatch
        self.journal = home / "cells.jsonl"
        save_words(home / "text.txt", 12000)

    def saved(self, family: str) -> Path:
        model = self.home / family
        if not model.exists():
            save_tiny(model, family, self.tokenizer, **({} if family == "t5" else {"max_position_embeddings": 512}))
        return model

    def measure(self, family: str, *given: str) -> None:
        model = self.saved(family)
        text = str(self.home / "text.txt")
        where = ["--journal", str(self.journal), "--work", str(self.home / "work")]
        how = ["--data", text, "--text", f"t={text}", "--windows", "3", "--length", "32", "--dtype", "fp32"]
        self.monkeypatch.setattr("sys.argv", ["measure.py", str(model), *how, *where, *given])
        load_benchmark("measure").main()

    def cells(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.journal.read_text().splitlines()]


@pytest.fixture
def table(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Table:
    return Table(tmp_path, tokenizer, monkeypatch)


@pytest.mark.parametrize(
    ("family", "row", "said"),
    [
        ("llama", "sled", "no such row; accepted: dense, uniform,"),
        ("t5", "sleb", "rival sleb takes decoder-only"),
        ("gemma2", "slicegpt", "gemma2 is a 'gemma2', whose residual stream it cannot cut: llama,"),
        ("mixtral", "tyr", "mixtral has fused experts, whose output projections it cannot refit"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    family: str, row: str, said: str, table: Table, capsys: pytest.CaptureFixture[str]
) -> None:
    table.saved(family)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        table.measure(family, "--rows", row)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not table.journal.exists()


def test_a_stopped_table_goes_on_with_the_cells_that_are_missing(table: Table) -> None:
    table.measure("llama", "--rows", "dense", "uniform", "--limit", "2")
    first = table.cells()
    assert [(c["method"], c["form"]) for c in first] == [("dense", "own"), ("uniform", "refitted")]
    table.measure("llama", "--rows", "dense", "uniform")
    cells = table.cells()
    assert cells[:2] == first
    assert [(c["method"], c["form"]) for c in cells[2:]] == [("uniform", "plain")]
    assert all(len(c["losses"]) == 3 and c["nll"] == pytest.approx(statistics.mean(c["losses"])) for c in cells)
    assert cells[1]["losses"] != cells[2]["losses"]
    assert cells[1]["parameters"] == cells[2]["parameters"] <= 0.75 * cells[0]["parameters"]
