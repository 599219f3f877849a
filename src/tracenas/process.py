"""The process that runs a command: what started it, what ends it, and what the system refuses it."""

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tracenas.errors import UserError, disk_trouble, system_error
from tracenas.world import World

__all__ = ["discard_output", "disk_failures", "is_first", "terminable"]

_REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG)


def is_first(command: str, parallel: Sequence[str]) -> bool:
    """Whether this process prints: of several, the first one.

    Args:
        parallel: the commands that torchrun may start in several processes.

    Raises:
        UserError: if a launcher started several processes of another command.
    """
    size = os.environ.get("WORLD_SIZE", "")
    if size in ("", "1"):
        return True
    if command not in parallel:
        raise UserError(
            f"{command} is one process, and WORLD_SIZE={size} says that there are several: start it without torchrun "
            f"({', '.join(parallel)} take several; run has recover.processes=N), or unset it"
        )
    if "MASTER_ADDR" not in os.environ:
        raise UserError(
            f"WORLD_SIZE={size} says that there are several processes: start them with torchrun, or unset it"
        )
    return World.from_environment().is_main


@contextmanager
def disk_failures() -> Iterator[None]:
    """What no writer has told in its own words: one line all the same.

    Raises:
        UserError: for a full or read-only disk, a quota, a missing permission.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except Exception as error:
        if isinstance(error, UserError) or system_error(error) not in _REFUSED:
            raise
        name = getattr(error, "filename", None) or "a file"
        raise UserError(f"cannot write or read {name}: {disk_trouble(error)}") from error


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM as an interrupt, unless the process ignores it; only the main thread can say so."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def discard_output() -> None:
    """So that the interpreter does not try again at its end to write what could not be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
