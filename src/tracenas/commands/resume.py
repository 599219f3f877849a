"""`tracenas resume`: go on with a run as its directory says, whatever command it is of."""

import logging
from pathlib import Path
from typing import Any

from tracenas.commands import COMMANDS
from tracenas.commands.report import PAGES
from tracenas.commands.stored import StoredRun
from tracenas.config import ResumeConfig
from tracenas.errors import UserError
from tracenas.pipeline.resume import on_gpu
from tracenas.pipeline.run_directory import BEST, JOURNAL, SUMMARY, in_use
from tracenas.rundir import REPORT
from tracenas.world import World

__all__ = ["resume"]

_log = logging.getLogger("tracenas")
_REMADE = {BEST, SUMMARY, REPORT, "study.md", "ablation.md"}
"""What a finished run is given again where it is missing."""


def resume(config: ResumeConfig) -> Any:
    """Go on with the run in `config.run`; of a finished one, make again from its journal what is missing.

    Returns:
        What the run's own command returns.

    Raises:
        UserError: for a directory that holds no run, settings that cannot be read, a run that another process is on,
            and as the run's own command.
    """
    run = StoredRun.read(config.run)
    if run.command not in COMMANDS or "resume" not in (kind := COMMANDS[run.command].kind).model_fields:
        raise UserError(f"{run.file}: of `tracenas {run.command}`, which this version does not go on with")
    command = COMMANDS[run.command]
    world = World.from_environment()
    if world.size > 1 and not command.parallel:
        raise UserError(f"run {config.run}: of `tracenas {run.command}`, which is one process: without torchrun")
    place = {"run" if run.command == "sparsify" else "out": run.path}
    settings = run.build(kind, **place, **_threads(config, run))
    if world.size > 1:
        return command(settings)
    with in_use(run.path):
        _check_model(run)
        before = _state(run.path)
        outcome = command(settings)
        after = _state(run.path)
        made = after.keys() - before.keys()
        if made <= _REMADE and after.get(JOURNAL) == before.get(JOURNAL):
            if run.command in PAGES and REPORT not in after:
                PAGES[run.command](run.path, None)
                made |= {REPORT}
            again = f"; made again: {', '.join(sorted(made))}" if made else ""
            _log.info("%s is finished%s", config.run, again)
    return outcome


def _check_model(run: StoredRun) -> None:
    """Refuse to go on without the model.

    Raises:
        UserError: if it is not where it was.
    """
    model = str(run.settings.get("model", ""))
    if Path(model).is_absolute() and not Path(model).exists():
        raise UserError(f"{run.file}: model {model} is not there any more: move it back, or write its new place there")


def _threads(config: ResumeConfig, run: StoredRun) -> dict[str, int]:
    """The number of threads where it may be another one.

    Raises:
        UserError: if the run's results depend on it.
    """
    if config.threads is None:
        return {}
    threads = run.settings.get("threads")
    if not on_gpu(run.settings) and config.threads != threads:
        had = f"{threads} threads" if threads else "torch's own number"
        raise UserError(
            f"threads {config.threads}: sums on a CPU depend on it; the run goes on with {had}: leave it out"
        )
    return {"threads": config.threads}


def _state(run: Path) -> dict[str, int]:
    """Bytes of what is in a run directory, by name; what begins with a dot apart."""
    return {path.name: path.stat().st_size for path in run.iterdir() if not path.name.startswith(".")}
