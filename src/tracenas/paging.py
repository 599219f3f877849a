"""Tensors in temporary files that the process maps: where memory is short, the system writes their pages to disk.

A file has no name any more once it is mapped, so nothing is left behind however the process ends; its space is free
again when the last tensor in it is gone. Small tensors share files.
"""

import errno
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Protocol

import torch
from torch import Tensor

from tracenas.errors import UserError

__all__ = ["LEAST", "Keep", "in_memory", "on_disk", "paged"]

LEAST = 1 << 16
"""Bytes that are worth their while."""
_SHARED = 1 << 26
"""Bytes of a file that small tensors share: those of less than an eighth of it."""
_ALIGNED = 64
_IN_MEMORY = frozenset({"tmpfs", "ramfs"})
"""File systems whose files are memory."""


class Keep(Protocol):
    """Takes a tensor that lives long, and gives the one to go on with: its numbers, wherever they lie."""

    def __call__(self, tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor, in another dtype if one is given."""


def in_memory(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The tensor where it is."""
    return tensor if dtype is None else tensor.to(dtype)


def paged(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A copy of a tensor of the CPU in a mapped file of the directory for temporary files; written to like any other.

    What is smaller than `LEAST` stays in memory, and what lies on an accelerator stays there.

    Raises:
        UserError: if that directory is in memory itself, or its disk is full.
    """
    dtype = dtype or tensor.dtype
    size = tensor.numel() * dtype.itemsize
    if size < LEAST or tensor.device.type != "cpu":
        return tensor.to(dtype)
    storage, place = (_mapped(size), 0) if 8 * size >= _SHARED else _SMALL.room(size)
    copy: Tensor = torch.empty(0, dtype=dtype).set_(storage, place // dtype.itemsize, tensor.shape)  # type: ignore[call-overload]
    copy.copy_(tensor)
    return copy


class _SharedFile:
    """Hands out places in a file one after the other; once it is full, in a new one."""

    def __init__(self) -> None:
        self._storage: torch.UntypedStorage | None = None
        self._used = 0
        self._lock = Lock()

    def room(self, size: int) -> tuple[torch.UntypedStorage, int]:
        """A file and the first byte of so many in it."""
        with self._lock:
            if self._storage is None or self._used + size > self._storage.nbytes():
                self._storage, self._used = _mapped(_SHARED), 0
            place = self._used
            self._used += -(-size // _ALIGNED) * _ALIGNED
            return self._storage, place


_SMALL = _SharedFile()


def _mapped(size: int) -> torch.UntypedStorage:
    """A file of so many bytes, mapped and without a name."""
    directory = Path(tempfile.gettempdir())
    if not on_disk(directory):
        raise UserError(f"{directory}: its files are memory, not disk; point TMPDIR at a directory on a disk")
    number, name = tempfile.mkstemp(prefix="tracenas-", dir=directory)
    try:
        _reserve(number, size, directory)
        storage: torch.UntypedStorage = torch.UntypedStorage.from_file(name, shared=True, nbytes=size)  # type: ignore[assignment]
        return storage
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise UserError(f"{directory}: no space left for weights; point TMPDIR at a larger disk") from error
    finally:
        os.close(number)
        os.unlink(name)


def _reserve(number: int, size: int, directory: Path) -> None:
    """Have the space of an open file: a mapped one that outgrows its disk would end the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(number, 0, size)
    elif shutil.disk_usage(directory).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    else:
        os.ftruncate(number, size)


def on_disk(directory: Path) -> bool:
    """Whether the files of a directory are on a disk, and not in memory."""
    return _file_system(directory) not in _IN_MEMORY


@cache
def _file_system(directory: Path) -> str:
    """The type of the file system that a directory lies on; empty where there is no /proc."""
    kind, longest = "", -1
    try:
        mounts = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return kind
    path = directory.resolve()
    for line in mounts:
        place = Path(line.split()[1].encode().decode("unicode_escape"))
        if path.is_relative_to(place) and len(place.parts) > longest:
            kind, longest = line.split()[2], len(place.parts)
    return kind
