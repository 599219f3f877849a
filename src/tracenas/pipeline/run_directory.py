"""A stage's run directory: one process at a time, one kind of run, and after a refused start as it was before."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tracenas.error_log import ERROR_LOG, error_log
from tracenas.errors import UserError
from tracenas.hub.commits import recording
from tracenas.journal import Journal
from tracenas.locks import locked
from tracenas.pipeline.resume import CONFIG, KIND, settings_file, write_commits, write_settings
from tracenas.rundir import free_of_ours, read_json, require_free, sweep, undone_on_error
from tracenas.settings import read_settings

__all__ = [
    "BEST",
    "CALIBRATION",
    "FRONT",
    "JOURNAL",
    "LATENCY",
    "ORDERING",
    "PROPOSALS",
    "SELECTION",
    "SENSITIVITY",
    "SUMMARY",
    "holds_result",
    "in_use",
    "interrupted_run",
    "named_run",
    "run_directory",
    "run_of",
    "starting",
]

PROPOSALS = "proposals.jsonl"
"""In a run directory: candidates that `tracenas best` has measured beside the search's, records as in the journal."""

JOURNAL, BEST, SUMMARY = "journal.jsonl", "best.json", "summary.json"
"""What a search leaves: every candidate, the best one, and the figures of the whole."""

CALIBRATION, ORDERING = "calibration.safetensors", "ordering.safetensors"
"""The tokens that everything is measured on, and the order and importance of the units."""

SELECTION = "selection.json"
"""What a search's best candidates come to on held-out text."""

SENSITIVITY = "sensitivity.safetensors"
"""The predicted cost of every width of every sub-block."""

FRONT = "front.json"
"""Of a search of all sizes: what every candidate costs, and what the sensitivity table makes of every size."""

LATENCY = "latency.json"
"""A copy of the latency table that budgets of milliseconds are counted by."""

_SAME = frozenset({"search", "run"})
"""A run goes on where a search of the same settings stopped, and the other way round."""

_INTERRUPTED = "interrupted run: "


@contextmanager
def in_use(out: Path) -> Iterator[None]:
    """Have `out` for this process alone: unexpected errors are kept in OUT/error.log, and what names on the hub stand
    for in a run's OUT/hub.json as soon as it is known."""

    def record() -> None:
        if settings_file(out) is not None:  # else they are written with the settings
            write_commits(out)

    with locked(out), error_log(out / ERROR_LOG), recording(record):
        try:
            yield
        except KeyboardInterrupt as error:
            if settings_file(out) is not None:
                error.add_note(f"{_INTERRUPTED}{out}")
            raise


def interrupted_run(error: BaseException | None) -> Path | None:
    """The run directory that an interrupt has left for `tracenas resume`, the outermost one; None if there is none."""
    while error is not None:
        runs = [note for note in getattr(error, "__notes__", ()) if note.startswith(_INTERRUPTED)]
        if runs:
            return Path(runs[-1].removeprefix(_INTERRUPTED))
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def run_directory(out: Path, kind: str, resume: bool) -> Iterator[bool]:
    """Have `out` alone; whether it holds a run to go on with. What a killed process left half done in it is cleared.

    Raises:
        UserError: if it is in use, if there is a run and `--resume` was not given, or something that is no such run.
    """
    with in_use(out):
        if resume:
            sweep(out)
        begun = (out / CONFIG).is_file()
        if begun:
            if not resume:
                raise UserError(f"run directory {out} holds a run; go on with --resume, or choose another")
            stored = read_settings(out / CONFIG).get(KIND, kind)
            if stored != kind and not {stored, kind} <= _SAME:
                raise UserError(f"run directory {out} is of `tracenas {stored}`, not of `tracenas {kind}`")
        elif resume and not free_of_ours(out):
            raise UserError(
                f"run directory {out}: no run to go on with (no {CONFIG} in it), and not empty; choose another"
            )
        else:
            require_free(out, what="run directory")
        yield begun


def holds_result(out: Path) -> bool:
    """Whether a search has ended: best.json and summary.json are there, and are of the whole journal."""
    if not all((out / name).is_file() for name in (BEST, SUMMARY)):
        return False
    evaluated = sum(record.get("status") != "infeasible" for record in Journal(out / JOURNAL).read())
    summary = read_json(out / SUMMARY)
    return isinstance(summary, dict) and summary.get("evaluations") == evaluated


def run_of(arch: Path, record: object) -> Path | None:
    """The run directory that an architecture's file belongs to: beside it, or named in it; None for one from elsewhere.

    Raises:
        UserError: if the run that it names is gone.
    """
    if not isinstance(record, dict) or "architecture" not in record:
        return None
    named = _named(record)
    if named is not None and not _is_run(named):
        raise UserError(f"{arch}: of the run {named}, which is gone: its text and order of units are needed")
    return named or (arch.parent if _is_run(arch.parent) else None)


def named_run(arch: Path) -> Path | None:
    """The run directory that an architecture's file names; None where there is no such file, or it names none."""
    try:
        record = read_json(arch)
    except UserError:  # whoever reads the architecture says so
        return None
    return _named(record) if isinstance(record, dict) else None


def _named(record: Mapping[str, Any]) -> Path | None:
    facts = record.get("provenance")
    named = facts.get("run") if isinstance(facts, dict) else None
    return Path(named) if isinstance(named, str) else None


def _is_run(directory: Path) -> bool:
    return (directory / CALIBRATION).is_file() and (directory / ORDERING).is_file()


@contextmanager
def starting(out: Path, kind: str, settings: Mapping[str, Any], begun: bool) -> Iterator[None]:
    """Write RUN/config.yaml and do what a start consists of; after an error nothing of a new start is left.

    Args:
        settings: as they were given; `resolve_settings` adds what was left open.
        begun: whether the run is gone on with; then nothing is written and nothing removed.
    """
    if begun:
        yield
        return
    with undone_on_error():
        write_settings(out / CONFIG, {KIND: kind, **settings})
        yield
