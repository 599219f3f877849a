"""What a search starts from: its sensitivity table, and the architectures that follow from it and from the budget."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tracenas.config import SearchConfig
from tracenas.config.usage import reads_widths, refits
from tracenas.errors import UserError
from tracenas.pipeline.rises import ranked_by_table, ranked_units
from tracenas.pipeline.run_directory import SENSITIVITY
from tracenas.pipeline.sensitivity import run_table
from tracenas.pipeline.session import Session
from tracenas.pipeline.target import PruningTarget
from tracenas.reporting.progress import phase
from tracenas.rundir import read_json, write_json
from tracenas.saliency.allocation import Ranked
from tracenas.saliency.sensitivity.table import SensitivityTable
from tracenas.saliency.starts import SOLVED, STARTS
from tracenas.space.architecture import Architecture

__all__ = ["START", "Starts", "run_starts", "stored_starts"]

_log = logging.getLogger("tracenas")

START = "start.json"
"""In a run directory: the architectures that are scored first, by name."""


@dataclass(frozen=True)
class Starts:
    """Where a search begins.

    Args:
        architectures: by name, within the budget.
        ranked: the units with what the run's sensitivity table says of them; None: the run has none.
    """

    architectures: Mapping[str, Architecture]
    ranked: Ranked | None


def run_starts(session: Session, config: SearchConfig) -> Starts:
    """The starts of a run, which it keeps; what cannot be had of them is left out and said.

    Args:
        session: no super-network yet: a table is measured on the base.

    Raises:
        UserError: if a start that was asked for by name needs a table, and none can be measured.
    """
    assert session.run is not None
    path = session.run / START
    session.table = table = _table(session, config, begun=path.is_file())
    ranked = None if table is None else ranked_by_table(session.target, table)
    if path.is_file():
        return Starts(_stored_architectures(session.target, path), ranked)
    architectures: dict[str, Architecture] = {}
    for name in config.starts:
        if name in SOLVED and ranked is None:
            continue
        try:
            with phase(f"start {name}"):
                ranks = ranked or ranked_units(session.target, {}, {})
                architectures[name] = STARTS.get(name)(ranks, None).architecture
        except UserError as error:
            _log.warning("start %s is left out: %s", name, error)
    write_json(path, {name: arch.to_json() for name, arch in architectures.items()})
    return Starts(architectures, ranked)


def stored_starts(target: PruningTarget, run: Path) -> Starts:
    """The starts that a run keeps, and its table, whatever model that is of."""
    table = run / SENSITIVITY
    ranked = ranked_by_table(target, SensitivityTable.read(table)) if table.is_file() else None
    return Starts(_stored_architectures(target, run / START), ranked)


def _stored_architectures(target: PruningTarget, path: Path) -> dict[str, Architecture]:
    known = read_json(path)
    if not isinstance(known, dict):
        raise UserError(f"{path}: expected an object of architectures by name")
    stored = {name: Architecture.from_json(one, where=f"{path}: {name}") for name, one in known.items()}
    return {name: target.space.validate(arch, where=str(path)) for name, arch in stored.items()}


def _table(session: Session, config: SearchConfig, begun: bool) -> SensitivityTable | None:
    """The run's table; None where nothing needs it, and where a default start cannot have it.

    Args:
        begun: whether the starts are made: then the run has its table, or went without.
    """
    assert session.run is not None
    solved, scored, stored = SOLVED & set(config.starts), reads_widths(config), (session.run / SENSITIVITY).is_file()
    if not stored and not scored and (begun or not solved):
        return None
    try:
        return run_table(session, session.micro_batch, compensated=refits(config) or scored, file=config.sensitivity)
    except UserError as error:
        if stored or scored or config.start != "auto" or config.sensitivity is not None:
            raise
        _log.warning("start %s is left out: %s", ", ".join(sorted(solved)), error)
        return None
