"""What a command tells beside its result: the records of the logger `tracenas`, on stderr from a level on.

In Python nothing is shown unless the program sets logging up: `logging.basicConfig(level="INFO")`.
"""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tracenas.error_log import TRACEBACKS
from tracenas.errors import UserError

__all__ = ["LEVEL", "LEVELS", "chosen_level", "inherited", "on_stderr"]

LEVEL = "TRACENAS_LOG"
"""The environment variable that names a level."""

LEVELS = {name: getattr(logging, name.upper()) for name in ("debug", "info", "warning", "error")}

_log = logging.getLogger("tracenas")


class _Stderr(logging.Handler):
    """A line per record on what is stderr by then, which a live display may have replaced."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.name != TRACEBACKS:
            warning = "warning: " if record.levelno == logging.WARNING else ""
            sys.stderr.write(f"{warning}{record.getMessage()}\n")
            sys.stderr.flush()


def chosen_level(*, verbose: bool, quiet: bool) -> int:
    """From which level on records are shown: what `-v` or `-q` says, else TRACENAS_LOG, else `info`.

    Raises:
        UserError: for both flags, and for an unknown level.
    """
    if verbose and quiet:
        raise UserError("--verbose and --quiet contradict each other: give one of them")
    if verbose or quiet:
        return logging.DEBUG if verbose else logging.ERROR
    name = os.environ.get(LEVEL) or "info"
    if name.lower() not in LEVELS:
        raise UserError(f"{LEVEL} '{name}': no such level; accepted: {', '.join(LEVELS)}")
    return int(LEVELS[name.lower()])


def inherited() -> dict[str, str]:
    """The environment of another process of ours, which shows what this one shows."""
    level = _log.getEffectiveLevel()
    return {**os.environ, LEVEL: next((name for name, at in LEVELS.items() if at >= level), "error")}


@contextmanager
def on_stderr(level: int) -> Iterator[None]:
    """Show the records of the logger `tracenas` in the block; the level is as before afterwards."""
    handler, before = _Stderr(), _log.level
    _log.addHandler(handler)
    _log.setLevel(level)
    try:
        yield
    finally:
        _log.setLevel(before)
        _log.removeHandler(handler)
