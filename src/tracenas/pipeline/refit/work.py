"""The work directory of a reconstruction: one process at a time, and what its blocks are trained with. No torch."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tracenas.errors import UserError
from tracenas.locks import locked
from tracenas.pipeline.resume import check_same
from tracenas.rundir import read_json, require_free, sweep, write_json

__all__ = ["BLOCKS", "STARTED", "at_work", "read_started", "work_directory"]

STARTED, BLOCKS = "started.json", "block-*.safetensors"
"""What the blocks are trained from, on and with; and those that are finished."""


def work_directory(out: Path) -> Path:
    """Where the finished blocks of a checkpoint are kept until it is written."""
    return out.with_name(f"{out.name}.reconstruction")


@contextmanager
def at_work(directory: Path, settings: Mapping[str, Any], *, resume: bool) -> Iterator[None]:
    """Have a work directory alone; one without a finished block, or whose work is done, is gone in the end.

    Args:
        settings: that decide what becomes of the blocks.
        resume: whether to go on with what is there.

    Raises:
        UserError: if another process has it, if it holds blocks of other settings, or any where nothing is resumed.
    """
    with locked(directory, what="work directory"):
        sweep(directory)
        if not any(directory.glob(BLOCKS)):
            (directory / STARTED).unlink(missing_ok=True)
            require_free(directory, what="work directory")
            write_json(directory / STARTED, {"settings": dict(settings)})
        elif not resume:
            raise UserError(
                f"{directory} holds the finished blocks of an interrupted reconstruction: go on with --resume, or "
                "remove it"
            )
        else:
            _check_settings(directory, settings)
        try:
            yield
        finally:
            if not any(directory.glob(BLOCKS)):
                (directory / STARTED).unlink(missing_ok=True)
    with suppress(OSError):  # gone already, or not empty
        directory.rmdir()


def _check_settings(directory: Path, settings: Mapping[str, Any]) -> None:
    recorded = read_started(directory).get("settings")
    if not isinstance(recorded, dict):
        raise UserError(f"{directory / STARTED}: holds no settings; remove {directory} to begin again")
    for name in dict.fromkeys([*settings, *recorded]):
        given, stored = settings.get(name), recorded.get(name)
        check_same(name.replace("_", "-"), stored, given, f"the work in {directory}", "; remove it to begin again")


def read_started(directory: Path) -> dict[str, Any]:
    """What is recorded of the beginning.

    Raises:
        UserError: if it is not there, or no JSON object.
    """
    started = read_json(directory / STARTED)
    if not isinstance(started, dict):
        raise UserError(f"{directory / STARTED}: expected an object; remove {directory} to begin again")
    return started
