"""Tensors in temporary files that the process maps: where memory is short, the system writes their pages to disk.

A file has no name any more once it is mapped, so nothing is left behind however the process ends; its space is free
again when the last view of the tensor is gone.
"""

import errno
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from tracenas.errors import UserError

__all__ = ["LEAST", "Keep", "in_memory", "paged"]

LEAST = 1 << 20
"""Bytes for which a file is worth its while."""
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

    What is smaller than `LEAST` stays in memory.

    Raises:
        UserError: if that directory is in memory itself, or its disk is full.
    """
    dtype = dtype or tensor.dtype
    size = tensor.numel() * dtype.itemsize
    if size < LEAST:
        return tensor.to(dtype)
    directory = Path(tempfile.gettempdir())
    if _file_system(directory) in _IN_MEMORY:
        raise UserError(f"{directory}: its files are memory, not disk; point TMPDIR at a directory on a disk")
    number, name = tempfile.mkstemp(prefix="tracenas-", dir=directory)
    try:
        _reserve(number, size, directory)
        storage = torch.UntypedStorage.from_file(name, shared=True, nbytes=size)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise UserError(f"{directory}: no space left for weights; point TMPDIR at a larger disk") from error
    finally:
        os.close(number)
        os.unlink(name)
    copy: Tensor = torch.empty(0, dtype=dtype).set_(storage, 0, tensor.shape)  # type: ignore[call-overload]
    copy.copy_(tensor)
    return copy


def _reserve(number: int, size: int, directory: Path) -> None:
    """Have the space of an open file: a mapped one that outgrows its disk would end the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(number, 0, size)
    elif shutil.disk_usage(directory).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    else:
        os.ftruncate(number, size)


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
