"""Checkpoints of a training run: each appears whole or not at all, and the newest whole one is resumed."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tracenas.errors import UserError, disk_trouble
from tracenas.rundir import UNFINISHED, default_mode, fsync

__all__ = [
    "checkpoint_path",
    "last_checkpoint",
    "publish",
    "remove_all",
    "rotate",
    "steps",
    "unfinished_path",
    "writing",
]

_NAME = re.compile(r"checkpoint-(\d+)")


def checkpoint_path(directory: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return directory / f"checkpoint-{step}"


def steps(directory: Path) -> list[int]:
    """Steps of all whole checkpoints, ascending."""
    if not directory.is_dir():
        return []
    matches = (_NAME.fullmatch(path.name) for path in directory.iterdir() if path.is_dir())
    return sorted(int(match[1]) for match in matches if match)


def last_checkpoint(directory: Path) -> Path | None:
    """The newest whole checkpoint."""
    existing = steps(directory)
    return checkpoint_path(directory, existing[-1]) if existing else None


def unfinished_path(directory: Path, step: int) -> Path:
    """Where the checkpoint of a step is while it is written."""
    return directory / f"{UNFINISHED}{step}"


@contextmanager
def writing(path: Path, last: Path | None, unfinished: Path | None = None) -> Iterator[None]:
    """Turns a file system's failure to write `path` into the user's line.

    Args:
        last: the last whole checkpoint, named in the message.
        unfinished: directory that is removed after an error.

    Raises:
        UserError: for a full disk, an unwritable directory and the like.
    """
    try:
        yield
    except Exception as error:
        if unfinished is not None:
            shutil.rmtree(unfinished, ignore_errors=True)
        if not (reason := disk_trouble(error)):
            raise
        intact = f"{last} is intact: go on from it with --resume" if last else "no earlier checkpoint was written"
        raise UserError(f"cannot write checkpoint {path}: {reason}; {intact}") from error


def publish(temporary: Path, path: Path) -> None:
    """Flush a directory to disk and give it its name, in the place of an older one of that name."""
    for file in sorted(temporary.rglob("*")):
        if file.is_file():
            file.chmod(default_mode(0o666))
        fsync(file)
    fsync(temporary)
    if path.exists():
        shutil.rmtree(path)
    temporary.replace(path)
    fsync(path.parent)


def remove_all(directory: Path) -> None:
    """Remove every checkpoint, and the directory if nothing else is in it."""
    for step in steps(directory):
        shutil.rmtree(checkpoint_path(directory, step), ignore_errors=True)
    with suppress(OSError):
        directory.rmdir()


def rotate(directory: Path, keep_last: int, best: int | None) -> None:
    """Remove all but the newest checkpoints and the best one."""
    existing = steps(directory)
    for step in existing[:-keep_last] if keep_last else []:
        if step != best:
            shutil.rmtree(checkpoint_path(directory, step), ignore_errors=True)
