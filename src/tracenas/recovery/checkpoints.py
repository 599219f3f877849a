"""Checkpoints of a training run: each appears whole or not at all, and the newest whole one is resumed."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tracenas.errors import UserError
from tracenas.rundir import UNFINISHED

__all__ = [
    "checkpoint_path",
    "disk_trouble",
    "last_checkpoint",
    "publish",
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
    found = (_NAME.fullmatch(path.name) for path in directory.iterdir() if path.is_dir())
    return sorted(int(match[1]) for match in found if match)


def last_checkpoint(directory: Path) -> Path | None:
    """The newest whole checkpoint."""
    known = steps(directory)
    return checkpoint_path(directory, known[-1]) if known else None


def unfinished_path(directory: Path, step: int) -> Path:
    """Where the checkpoint of a step is while it is written."""
    return directory / f"{UNFINISHED}{step}"


@contextmanager
def writing(path: Path, kept: Path | None) -> Iterator[None]:
    """Turns a file system's failure into the user's line, and removes what was written to `path`.

    Args:
        kept: the last whole checkpoint, named in the message.

    Raises:
        UserError: for a full disk, an unwritable directory and the like.
    """
    try:
        yield
    except Exception as error:
        shutil.rmtree(path, ignore_errors=True)
        if not (reason := disk_trouble(error)):
            raise
        intact = f"{kept} is intact: go on from it with --resume" if kept else "no earlier checkpoint was written"
        raise UserError(f"cannot write checkpoint {path.parent}: {reason}; {intact}") from error


def publish(temporary: Path, path: Path) -> None:
    """Flush a directory to disk and give it its name, in the place of an older one of that name."""
    umask = os.umask(0)
    os.umask(umask)
    for file in sorted(temporary.rglob("*")):
        if file.is_file():
            file.chmod(0o666 & ~umask)
        _fsync(file)
    _fsync(temporary)
    if path.exists():
        shutil.rmtree(path)
    temporary.replace(path)
    _fsync(path.parent)


def rotate(directory: Path, keep_last: int, best: int | None) -> None:
    """Remove all but the newest checkpoints and the best one."""
    known = steps(directory)
    for step in known[:-keep_last] if keep_last else []:
        if step != best:
            shutil.rmtree(checkpoint_path(directory, step), ignore_errors=True)


def disk_trouble(error: BaseException) -> str:
    """The system's words if the file system failed (safetensors and tokenizers pass them on as text), else ''."""
    if isinstance(error, UserError):
        return ""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    text = str(error)
    return text.splitlines()[0] if "os error" in text or "No space left" in text else ""


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
