"""`tracenas runs`: the runs in a directory, and how far each of them is."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tracenas.commands import COMMANDS
from tracenas.commands.recover.checks import SPARSITY
from tracenas.commands.recover.result import LOG, RESULT
from tracenas.commands.run.steps import stage_steps
from tracenas.commands.stored import StoredRun
from tracenas.commands.study.ablation import ABLATION
from tracenas.commands.study.results import STUDY
from tracenas.config import RunConfig, RunsConfig
from tracenas.config.local_paths import absolute_path
from tracenas.error_log import ERROR_LOG
from tracenas.errors import UserError
from tracenas.journal import Journal
from tracenas.locks import holder
from tracenas.pipeline.resume import settings_file
from tracenas.pipeline.run_directory import BEST, JOURNAL, SUMMARY, holds_result
from tracenas.reporting.terminal import Outcome, Table
from tracenas.rundir import REPORT

__all__ = ["RunState", "Runs", "runs"]


@dataclass(frozen=True)
class RunState:
    """A run and how far it is.

    Args:
        path: its directory.
        command, model: empty where its settings cannot be read.
        state: finished, running, failed, interrupted, or why it cannot be read.
        progress: what is done of what was asked for.
        changed: when something was last written.
    """

    path: Path
    command: str
    model: str
    state: str
    progress: str
    changed: datetime

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {**vars(self), "path": str(self.path), "changed": self.changed.isoformat(timespec="seconds")}


@dataclass(frozen=True)
class Runs(Outcome):
    """The runs in a directory, last changed first."""

    directory: Path
    runs: tuple[RunState, ...]

    def to_json(self) -> Any:
        """For `--json`."""
        return {"directory": str(self.directory), "runs": [run.to_json() for run in self.runs]}

    def tables(self) -> list[Table]:
        """A row per run."""
        if not self.runs:
            return []
        rows = [
            (
                str(r.path.relative_to(self.directory)),
                r.command,
                Path(r.model).name if Path(r.model).is_absolute() else r.model,
                r.state,
                r.progress,
                f"{r.changed:%Y-%m-%d %H:%M}",
            )
            for r in self.runs
        ]
        columns = ("directory", "command", "model", "state", "progress", "last change")
        return [Table(f"runs in {self.directory}", columns, rows, ["go on with: tracenas resume DIRECTORY"])]

    def show(self) -> None:
        """The table on stdout, or that there is none."""
        super().show()
        if not self.runs:
            print(f"no run in {self.directory} or right below it")


def runs(config: RunsConfig) -> Runs:
    """The runs in `config.directory`: itself and what is right in it.

    Raises:
        UserError: if there is no such directory.
    """
    directory = absolute_path(config.directory)
    if not directory.is_dir():
        raise UserError(f"{config.directory}: {'is a file' if directory.exists() else 'no such directory'}")
    try:
        places = [directory, *sorted(path for path in directory.iterdir() if path.is_dir())]
    except OSError as error:
        raise UserError(f"{config.directory}: {error.strerror or error}") from error
    found = [state for path in places if (state := _state(path)) is not None]
    return Runs(directory, tuple(sorted(found, key=lambda run: run.changed, reverse=True)))


def _state(path: Path) -> RunState | None:
    """None where there is no run."""
    with suppress(OSError):
        if settings_file(path) is None:
            return None
        try:
            run = StoredRun.read(path)
            if run.command not in COMMANDS and not _is_ours(path):  # settings of something else that have a kind
                return None
            done, progress = _progress(run)
        except UserError as error:
            return RunState(path, "", "", f"cannot be read: {error}", "", _changed(path)) if _is_ours(path) else None
        model = str(run.settings.get("model", ""))
        return RunState(path, run.command, model, _standing(path, done), progress, _changed(path))
    return None


def _is_ours(path: Path) -> bool:
    return any((path / name).exists() for name in (JOURNAL, SUMMARY, BEST, LOG))


def _standing(path: Path, done: bool) -> str:
    if (pid := holder(path)) is not None:
        return f"running ({pid})" if pid else "running"
    if done:
        return "finished"
    log = path / ERROR_LOG
    if log.is_file() and log.stat().st_mtime >= _changed(path).timestamp():
        return f"failed: {ERROR_LOG}"
    return "interrupted"


def _changed(path: Path) -> datetime:
    """When a file in it was last written."""
    times = [one.stat().st_mtime for one in path.iterdir() if not one.name.startswith(".")]
    return datetime.fromtimestamp(max(times, default=path.stat().st_mtime))


def _progress(run: StoredRun) -> tuple[bool, str]:
    """Whether nothing is left to do, and how far it is.

    Raises:
        UserError: for files that are not what the command writes.
    """
    try:
        return _PROGRESS.get(run.command, _searched)(run)
    except (KeyError, TypeError, ValueError) as error:
        what = f"holds what `tracenas {run.command}` does not write ({type(error).__name__})"
        raise UserError(f"{run.path} {what}") from error


def _searched(run: StoredRun) -> tuple[bool, str]:
    records, generations = Journal(run.path / JOURNAL).read(), run.settings.get("iterations")
    if holds_result(run.path):
        return True, f"{len(records):,} candidates"
    if minutes := run.settings.get("minutes"):
        return False, f"{len(records):,} candidates in {minutes:g} minutes at most"
    begun = int(records[-1]["generation"]) + 1 if records else 0
    return False, f"generation {begun} of {generations}, {len(records):,} candidates"


def _sparsified(run: StoredRun) -> tuple[bool, str]:
    done, progress = _searched(run)
    written = (Path(str(run.settings.get("out"))) / SPARSITY).is_file()
    return done and written, progress if written or not done else f"{progress}; no checkpoint yet"


def _piped(run: StoredRun) -> tuple[bool, str]:
    done, progress = _searched(run)
    if not done:
        return False, progress
    steps = stage_steps(run.build(RunConfig, out=run.path))
    left = [step for step in steps if not (run.path / step.result).is_file()]
    count = len(steps) + 1
    if not left:
        return True, f"{count} stages"
    parts = left[0].parts
    of_them = f", {sum((run.path / part).is_file() for part in parts)} of {len(parts)}" if parts else ""
    return False, f"stage {count - len(left) + 1} of {count}: {left[0].name}{of_them}"


def _demonstrated(run: StoredRun) -> tuple[bool, str]:
    inner = run.path / "run"
    if settings_file(inner) is None:
        return False, "planned"
    done, progress = _piped(StoredRun.read(inner))
    return done and (run.path / REPORT).is_file(), progress


def _recovered(run: StoredRun) -> tuple[bool, str]:
    records = Journal(run.path / LOG).read()
    step = max((int(record["step"]) for record in records), default=0)
    return (run.path / RESULT).is_file(), f"step {step:,} of {run.settings.get('max_steps'):,}"


def _counted(result: str, total: str, what: str) -> Callable[[StoredRun], tuple[bool, str]]:
    """Of a journal with a line for every `what`; the setting `total` says how many there will be."""

    def progress(run: StoredRun) -> tuple[bool, str]:
        count, of = len(Journal(run.path / JOURNAL).read()), run.settings.get(total)
        return (run.path / result).is_file(), f"{count:,}{f' of {of:,}' if of else ''} {what}"

    return progress


_PROGRESS: Mapping[str, Callable[[StoredRun], tuple[bool, str]]] = {
    "run": _piped,
    "demo": _demonstrated,
    "recover": _recovered,
    "sparsify": _sparsified,
    "study": _counted(STUDY, "architectures", "architectures"),
    "study ablation": _counted(ABLATION, "", "settings"),
}
