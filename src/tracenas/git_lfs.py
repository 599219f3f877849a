"""Pointers of Git LFS: what a clone without its large files holds in their place."""

from pathlib import Path

from tracenas.errors import UserError

__all__ = ["REMEDY", "START", "is_pointer", "refuse_pointer"]

START = b"version https://git-lfs.github.com/spec/"
REMEDY = "a pointer of Git LFS: git lfs pull"


def is_pointer(start: bytes) -> bool:
    """Whether a file that begins with `start` is such a pointer."""
    return start.startswith(START)


def refuse_pointer(path: Path) -> None:
    """Refuse a file that is only a pointer; one that is not there, or cannot be read, is another's to refuse.

    Raises:
        UserError: naming the file.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(START))
    except OSError:
        return
    if is_pointer(start):
        raise UserError(f"{path}: {REMEDY}")
