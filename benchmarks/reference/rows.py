"""The rows of the reference table: which architectures, at which budgets, and how each checkpoint is made."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cells import searched

import tracenas
from tracenas.errors import UserError
from tracenas.rundir import read_json, write_json

__all__ = ["STARTS", "Row", "Setup", "checkpoint", "rows_of", "seconds_of"]

ONE_SHOT: dict[str, dict[str, str]] = {"shortgpt": {}, "nirvana": {}, "flap": {}, "taylor": {"allocation": "global"}}
"""One-shot methods, with what the rows of the table have of their own."""
SEARCHES = {"tracenas (recommended)": "auto", "tracenas (phi)": "phi", "tracenas (units by obs)": "auto"}
"""Proxies of the searches that are compared."""
BY_OBS = ("tracenas (units by obs)", "uniform (units by obs)")
"""Rows whose units OBS ranks; those of other searches are ranked as these do, uniform and random ones by Wanda's."""
FEW = ("uniform", "tracenas (recommended)", "tracenas (phi)")
"""Rows of every budget; the others are made at the first budget alone."""
STARTS = ("plain", "compensated", "recovered")
"""States of a row's checkpoint; recovery starts from the compensated one."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        name: as the table says it.
        budget: a share such as 75%; 100% is the base.
    """

    name: str
    budget: str = "100%"

    @property
    def file(self) -> str:
        """Name of its directories."""
        name = self.name.replace(" ", "-").replace("(", "").replace(")", "")
        return f"{name}-{self.budget.rstrip('%')}"


@dataclass(frozen=True)
class Setup:
    """What all rows share.

    Args:
        model: the base.
        data: text for calibration, compensation and recovery.
        work: directory of runs and checkpoints.
        seed: of everything.
        samples, seq_len: of calibration; recovery trains on sequences of that length, too.
        dtype: of all stages; recovery keeps fp32 weights.
        recovery: settings of the recovery.
        compensation: settings of the refit.
        search: settings of the searches.
    """

    model: str
    data: str
    work: Path
    seed: int
    samples: int
    seq_len: int
    dtype: str
    recovery: dict[str, Any]
    compensation: dict[str, Any]
    search: dict[str, Any] = field(default_factory=dict)

    @property
    def calibration(self) -> dict[str, Any]:
        """Text and settings that the search or pruning of every row takes."""
        return {
            "data": self.data,
            "samples": self.samples,
            "seq_len": self.seq_len,
            "seed": self.seed,
            "dtype": self.dtype,
        }


def rows_of(budget: str, *, first: bool, randoms: int) -> list[Row]:
    """All rows of a budget, those that matter most first: everybody at the first budget, a few at the others."""
    more = (*BY_OBS, *ONE_SHOT, *(f"random {i + 1}" for i in range(randoms))) if first else ()
    return [Row(name, budget) for name in (*FEW, *more)]


def checkpoint(setup: Setup, row: Row, start: str) -> Path:
    """The checkpoint of a row in the state `start`, written if it is not there."""
    if row.name == "base":
        return Path(setup.model)
    if start == "recovered":
        return _recovered(setup, row)
    out = setup.work / f"{row.file}-{start}"
    if (out / "config.json").is_file():
        return out
    how: dict[str, Any] = {"compensate": "none", "out": out}
    if start == "compensated":
        how |= {"compensate": "sequential", **setup.compensation}
    if row.name in ONE_SHOT:
        how |= {"method": row.name, "params": row.budget, **ONE_SHOT[row.name], **setup.calibration}
    elif row.name in SEARCHES:  # plain, it takes the calibration of its run
        how |= {"arch": _found(setup, row), **({"data": setup.data} if start == "compensated" else {})}
    else:
        how |= {"arch": _drawn(setup, row), **_ranked(row), **setup.calibration}
    tracenas.prune(setup.model, **how)
    return out


def _recovered(setup: Setup, row: Row) -> Path:
    """Distilled from the base; an interrupted recovery goes on with its last checkpoint."""
    from tracenas.commands.recover.command import SETTINGS

    out = setup.work / f"{row.file}-recovered"
    if not (out / SETTINGS).is_file():  # cut off before it began
        shutil.rmtree(out, ignore_errors=True)
    steps = setup.recovery["max_steps"]
    tracenas.recover(
        checkpoint(setup, row, "compensated"),
        method="distill",
        teacher=setup.model,
        data=setup.data,
        out=out,
        seq_len=setup.seq_len,
        dtype=setup.dtype,
        seed=setup.seed,
        save_every=max(1, steps // 4),
        resume=True,
        **setup.recovery,
    )
    return out


def _ranked(row: Row) -> dict[str, str]:
    """What ranks a row's units, where it is not the default."""
    return {"saliency": "obs"} if row.name in BY_OBS else {}


def _run_of(setup: Setup, row: Row) -> Path:
    return setup.work / f"search-{row.file}"


def _found(setup: Setup, row: Row) -> Path:
    """The best.json of a row's search, resumed if it was interrupted."""
    how = {"params": row.budget, "proxy": SEARCHES[row.name], **_ranked(row), **setup.calibration, **setup.search}
    return searched(setup.model, _run_of(setup, row), **how) / "best.json"


def _drawn(setup: Setup, row: Row) -> Path:
    """Architecture file of the uniform or of a random architecture, filled up to the budget."""
    from tracenas.commands.run.comparison import rivals
    from tracenas.config import SearchConfig
    from tracenas.models.checkpoints.source import open_source
    from tracenas.pipeline.target import resolve_target

    path = setup.work / f"{row.file}.json"
    if not path.is_file():
        config = SearchConfig(model=setup.model, data=setup.data, params=row.budget, out=setup.work)
        space = resolve_target(open_source(setup.model), config, params=row.budget).space
        count = int(row.name.split()[1]) if row.name.startswith("random") else 0
        arch = rivals(space, count, setup.seed).get("uniform" if row.name in BY_OBS else row.name)
        if arch is None:
            raise UserError(f"{setup.model}: no {row.name} architecture at {row.budget}")
        write_json(path, {"architecture": arch.to_json()})
    return path


def seconds_of(setup: Setup, row: Row) -> float | None:
    """Wall time of a row's search; None where there was none."""
    if row.name not in SEARCHES:
        return None
    summary = read_json(_run_of(setup, row) / "summary.json")
    return float(summary["seconds"]) + float(summary["overhead_seconds"])
