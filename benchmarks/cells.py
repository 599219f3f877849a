"""Tables that are measured cell by cell: every cell is a line of a journal, so that a stopped table goes on."""

import itertools
import json
import math
import shutil
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import tracenas
from tracenas.journal import Journal

__all__ = ["Cells", "model_name", "over_seeds", "pairs", "perplexity", "recovered", "searched"]


class Cells:
    """Measured cells, those of earlier runs among them.

    Args:
        journal: JSON lines, a record each.
        fields: those of a record that tell a cell from the others.
    """

    def __init__(self, journal: Path, fields: tuple[str, ...]) -> None:
        self.journal, self.fields = Journal(journal), fields
        self.records = {self.key(record): record for record in self.journal.read()}

    def key(self, cell: dict[str, Any]) -> tuple[Any, ...]:
        """What tells a cell from the others."""
        return tuple(cell.get(field) for field in self.fields)

    def __contains__(self, cell: dict[str, Any]) -> bool:
        return self.key(cell) in self.records

    def get(self, cell: dict[str, Any]) -> dict[str, Any] | None:
        """The record of a cell, None if it is not measured."""
        return self.records.get(self.key(cell))

    def where(self, **values: Any) -> list[dict[str, Any]]:
        """The records with these values, in the order in which they were measured."""
        return [r for r in self.records.values() if all(r.get(key) == value for key, value in values.items())]

    def append(self, record: dict[str, Any]) -> None:
        """Add a record; it is on disk when this returns."""
        self.journal.append(record)
        self.records[self.key(record)] = record

    def fill(
        self,
        wanted: Iterable[dict[str, Any]],
        measure: Callable[[dict[str, Any]], dict[str, Any]],
        limit: int | None = None,
    ) -> None:
        """Measure the missing ones in order, `limit` at most; a line on stdout for each."""
        missing = (cell for cell in wanted if cell not in self)
        for cell in itertools.islice(missing, limit):
            record = {**cell, **measure(cell)}
            self.append(record)
            nll = record.get("nll")
            print(json.dumps({**cell, **({} if nll is None else {"nll": round(nll, 4)})}), flush=True)


def pairs(given: list[str], *, numbers: bool = True) -> dict[str, Any]:
    """Settings from `KEY=VALUE`: dashes in a key become underscores, a value that is a number one (if `numbers`)."""
    found: dict[str, Any] = {}
    for pair in given:
        key, equals, value = pair.partition("=")
        if not equals:
            raise SystemExit(f"'{pair}': expected KEY=VALUE")
        found[key.replace("-", "_")] = _number(value) if numbers else value
    return found


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text) if text[:1].isdigit() else text
        except ValueError:
            continue
    return text


def model_name(model: str) -> str:
    """What a table calls the model in a directory; `model` is the one that ships in the package."""
    return Path(model).resolve().name if Path(model).name != "model" else "demo"


def perplexity(checkpoint: str, text: str, seq_len: int, windows: int, dtype: str = "auto") -> dict[str, Any]:
    """Held-out loss, perplexity and number of parameters of a checkpoint."""
    found = tracenas.evaluate([checkpoint], text=text, seq_len=seq_len, max_windows=windows, dtype=dtype).to_json()
    return {"nll": found["nll"], "perplexity": found["perplexity"], "parameters": found["params"]}


def recovered(start: str, out: Path, *, steps: int, **settings: Any) -> str:
    """The checkpoint after so many steps of recovery, in `out`; what is there is removed."""
    shutil.rmtree(out, ignore_errors=True)
    tracenas.recover(start, out=out, max_steps=steps, **{"save_every": steps, **settings})
    return str(out)


def over_seeds(nll: list[float]) -> dict[str, Any]:
    """Mean loss, its standard deviation, and the perplexity of the mean."""
    mean = statistics.mean(nll)
    return {
        "nll": round(mean, 4),
        "spread": round(statistics.stdev(nll), 4) if len(nll) > 1 else None,
        "perplexity": round(math.exp(min(mean, 700)), 2),
    }


def searched(model: str, out: Path, **settings: Any) -> Path:
    """The run directory of a search; a finished one is left as it is, an interrupted one goes on."""
    if not (out / "summary.json").is_file():
        tracenas.search(model, out=out, resume=True, **settings)
    return out
