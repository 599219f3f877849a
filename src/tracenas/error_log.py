"""OUT/error.log: what went wrong and is no mistake of the user's, with every traceback in full."""

import logging
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from tracenas.errors import CheckFailed, UserError

__all__ = [
    "ERROR_LOG",
    "TRACEBACKS",
    "error_log",
    "is_error_log",
    "log_beside",
    "log_failure",
    "log_trace",
    "traceback_place",
]

ERROR_LOG = "error.log"
_HEADER = "tracenas error log"
_NOTE = "the traceback is in "
TRACEBACKS = "tracenas.tracebacks"
"""The logger of what goes into the file, whatever level the rest is shown from."""
_log = logging.getLogger(TRACEBACKS)
_log.setLevel(logging.ERROR)


class _File(logging.Handler):
    """Appends to a file that is made with the first entry; the same traceback is written once."""

    def __init__(self, path: Path) -> None:
        super().__init__(logging.ERROR)
        self.path = path
        self.entries: set[str] = set()
        self.failed = False

    def emit(self, record: logging.LogRecord) -> None:
        entry = self.format(record)
        if entry in self.entries:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                if not file.tell():
                    file.write(f"{_HEADER}\n")
                file.write(f"\n--- {datetime.now():%Y-%m-%d %H:%M:%S}, process {os.getpid()}: {entry}\n")
        except OSError:  # a full disk: whoever tells of the error shows the traceback
            self.failed = True
        self.entries.add(entry)


@contextmanager
def error_log(path: Path | None) -> Iterator[None]:
    """Keep in `path` what is logged as failed in the block, and the error that it ends with; within it, no other log.

    The error gets a note that says where its traceback is. A `UserError` and a `CheckFailed` say all by themselves.

    Args:
        path: None for no log.
    """
    if path is None or any(isinstance(handler, _File) for handler in _log.handlers):
        yield
        return
    file = _File(path)
    _log.addHandler(file)
    try:
        yield
    except (UserError, CheckFailed):
        raise
    except Exception as error:
        log_failure(error)
        if not file.failed:
            error.add_note(f"{_NOTE}{path}")
        raise
    finally:
        _log.removeHandler(file)


def log_beside(file: Path) -> Path:
    """Where the log of a command is that writes a single file."""
    return file.with_name(f"{file.name}.{ERROR_LOG}")


def log_failure(error: BaseException) -> str:
    """Keep an error's traceback where a log is kept; returns its text."""
    trace = "".join(traceback.format_exception(error)).rstrip()
    log_trace(trace)
    return trace


def log_trace(trace: str) -> None:
    """Keep a traceback's text, where a log is kept; the error itself would hold what its frames hold."""
    _log.error("%s", trace)


def traceback_place(error: BaseException) -> str | None:
    """The file that `error_log` wrote the error's traceback to; None if there is none."""
    notes = (note for note in getattr(error, "__notes__", ()) if note.startswith(_NOTE))
    return next((note.removeprefix(_NOTE) for note in notes), None)


def is_error_log(path: Path) -> bool:
    """Whether a file is a log of ours, not the user's."""
    try:
        with path.open("rb") as file:
            return path.name == ERROR_LOG and file.readline().strip() == _HEADER.encode()
    except OSError:
        return False
