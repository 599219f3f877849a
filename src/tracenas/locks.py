"""One process at a time in a directory that a command writes into."""

import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from tracenas.errors import UserError
from tracenas.rundir import LOCK, holding, make_directory

__all__ = ["holder", "locked"]

_log = logging.getLogger("tracenas")
_holders: dict[Path, int] = {}
"""Lock file → the thread of this process that holds it."""


@contextmanager
def locked(directory: Path, *, what: str = "run directory", name: str = LOCK) -> Iterator[None]:
    """Have a directory alone for the block; free within a block that has it. The system ends a dead process's lock.

    Args:
        directory: made if it is not there, and removed in the end if nothing was put into it.
        name: of the lock file, where it is for a single file of the directory.

    Raises:
        UserError: if another process or thread has it (which one), or no lock can be made there.
    """
    place = directory.resolve() / name
    if _holders.get(place) == threading.get_ident():
        yield
        return
    created = not directory.exists()
    if not created and not directory.is_dir():
        raise UserError(f"{what} {directory}: is a file")
    lock = FileLock(place, timeout=0)
    try:
        _acquire(lock, directory, place, what)
        _holders[place] = threading.get_ident()
        yield
    finally:
        if lock.is_locked:
            _holders.pop(place, None)
            place.unlink(missing_ok=True)
            lock.release()
        if created:
            with suppress(OSError):  # not there, or not empty
                directory.rmdir()


def holder(directory: Path) -> str | None:
    """Who has a directory, as its lock says, which may be nothing; None if no living process does."""
    place = directory / LOCK
    try:
        with holding(place) as free:
            return None if free else _text(place)
    except OSError:  # there is no lock, or it is not ours to read
        return None


def _acquire(lock: FileLock, directory: Path, place: Path, what: str) -> None:
    owner = _text(place)  # before the attempt: old versions of filelock empty the file
    try:
        make_directory(directory)
        lock.acquire()
        if getattr(lock, "pid", None) is None:  # where the system has no locks, filelock writes into the file itself
            place.write_text(f"pid {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        if owner:
            _log.warning("%s %s: taken over from %s, which has ended without giving it back", what, directory, owner)
    except Timeout as error:
        other = owner or "another process"
        raise UserError(f"{what} {directory}: in use by {other}; wait, or choose another") from error
    except OSError as error:
        raise UserError(f"{what} {directory}: {error.strerror or error}") from error


def _text(path: Path) -> str:
    with suppress(OSError, UnicodeDecodeError):
        return path.read_text(encoding="utf-8").strip()
    return ""
