"""The process that runs a command: what started it, what ends it, and what the system refuses it."""

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tracenas.errors import UserError
from tracenas.world import World

__all__ = ["discard_output", "is_first", "terminable"]


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
