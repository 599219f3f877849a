"""The rows of the reference table: which architectures, at which budgets, and how each checkpoint is made."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tracenas

__all__ = ["Cell", "Row", "Setup", "checkpoint", "rows_of"]

ONE_SHOT = ("shortgpt", "nirvana", "flap", "taylor")
SEARCHES = {"tracenas (phi)": "phi", "tracenas (recommended)": "auto"}
FEW = ("uniform", *SEARCHES)
"""Rows of every budget; the others are made at the first budget alone."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        name: as the table says it.
        params: budget; empty for the base.
    """

    name: str
    params: str = ""


@dataclass(frozen=True)
class Setup:
    """What all rows share.

    Args:
        model: the base.
        data: text for calibration, compensation and recovery.
        rivals: held-out text that no row was made with, for the random and uniform rows of a run.
        work: directory of runs and checkpoints.
        seed: of everything.
        search: settings of the searches.
    """

    model: str
    data: str
    eval_text: str
    work: Path
    seed: int
    samples: int
    seq_len: int
    search: dict[str, Any] = field(default_factory=dict)

    @property
    def calibration(self) -> dict[str, Any]:
        """Settings of calibration that every row takes."""
        return {"samples": self.samples, "seq_len": self.seq_len, "seed": self.seed}


@dataclass(frozen=True)
class Cell:
    """One measurement of one row: `plain`, `compensated` or `recovered`, and what is measured there."""

    row: Row
    start: str
    what: str

    def key(self) -> str:
        """What tells a cell from the others."""
        return json.dumps([self.row.name, self.row.params, self.start, self.what])


def rows_of(budgets: list[str], randoms: int) -> list[Row]:
    """All rows: everybody at the first budget, a few at the others."""
    first = ["uniform", *(f"random {i + 1}" for i in range(randoms)), *ONE_SHOT, *SEARCHES]
    rows = [Row("base"), *(Row(name, budgets[0]) for name in first)]
    return rows + [Row(name, params) for params in budgets[1:] for name in FEW]


def checkpoint(setup: Setup, row: Row, start: str) -> Path:
    """The checkpoint of a row, plain or compensated, written if it is not there."""
    if row.name == "base":
        return Path(setup.model)
    name = f"{row.name.replace(' ', '-').replace('(', '').replace(')', '')}-{row.params.rstrip('%')}"
    out = setup.work / f"{name}-{start}"
    if (out / "config.json").is_file():
        return out
    how: dict[str, Any] = {"compensate": "sequential" if start == "compensated" else "none", "out": out}
    if row.name in ONE_SHOT:
        made = {"method": row.name, "params": row.params, "data": setup.data, **setup.calibration}
        tracenas.prune(setup.model, **made, **how)
        return out
    if row.name in SEARCHES:
        arch = _found(setup, row)
    else:
        arch = _drawn(setup, row)
        how |= {"data": setup.data, **setup.calibration}
    if start == "compensated":
        how["data"] = setup.data
    tracenas.prune(setup.model, arch=arch, **how)
    return out


def _found(setup: Setup, row: Row) -> Path:
    """The best.json of a row's search, resumed if it was interrupted."""
    out = setup.work / f"search-{SEARCHES[row.name]}-{row.params.rstrip('%')}"
    if not (out / "summary.json").is_file():
        tracenas.search(
            setup.model,
            data=setup.data,
            params=row.params,
            out=out,
            proxy=SEARCHES[row.name],
            resume=True,
            **setup.calibration,
            **setup.search,
        )
    return out / "best.json"


def _drawn(setup: Setup, row: Row) -> Path:
    """Architecture file of the uniform or of a random architecture, filled up to the budget."""
    from tracenas.config import SearchConfig
    from tracenas.models.source import open_source
    from tracenas.rundir import write_json
    from tracenas.stages.run import rivals
    from tracenas.stages.session import space_of

    path = setup.work / f"{row.name.replace(' ', '-')}-{row.params.rstrip('%')}.json"
    if not path.is_file():
        config = SearchConfig(model=setup.model, data=setup.data, params=row.params, out=setup.work / "unused")
        space = space_of(open_source(setup.model), config, params=row.params)
        count = int(row.name.split()[1]) if row.name.startswith("random") else 0
        write_json(path, {"architecture": rivals(space, count, setup.seed)[row.name].to_json()})
    return path


def seconds_of(setup: Setup, row: Row) -> float | None:
    """Wall time of a row's search; None where there was none."""
    if row.name not in SEARCHES:
        return None
    summary = setup.work / f"search-{SEARCHES[row.name]}-{row.params.rstrip('%')}" / "summary.json"
    found: dict[str, Any] = json.loads(summary.read_text())
    return float(found["seconds"]) + float(found["overhead_seconds"])
