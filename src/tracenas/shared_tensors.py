"""Memory that the processes of a pool share: whether what they are built from fits there."""

import io
import pickle
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor, multiprocessing, nn

from tracenas.errors import UserError

__all__ = ["in_files", "require_shared_memory"]

_SHARED = Path("/dev/shm")
_DESCRIPTORS = 200
"""Tensors that are shared as open files, at most."""
_LEFT = 1.1
"""Of shared memory, this times what the tensors take must be free."""


def require_shared_memory(spec: Any, workers: int) -> None:
    """Refuse before a process is ended by a bus error; many tensors are shared by name from here on.

    A process is started with 256 open files of another at most, and shared tensors are one each unless they have names.
    What has a name is removed once the processes that share it have ended, by a process of torch's that watches them.

    Raises:
        UserError: if the system's shared memory is too small for the tensors of `spec`, or these wait in files.
    """
    found = _Counter(io.BytesIO(), protocol=5)
    found.dump(spec)
    if found.paged:
        raise in_files(workers)
    if len(found.storages) > _DESCRIPTORS:
        multiprocessing.set_sharing_strategy("file_system")
    if not _SHARED.is_dir():
        return
    needed, free = sum(found.storages.values()), shutil.disk_usage(_SHARED).free
    if needed * _LEFT > free:
        raise UserError(
            f"workers {workers}: weights and statistics take {needed / 2**20:,.0f} MiB of shared memory, and {_SHARED} "
            f"has {free / 2**20:,.0f} free; make it larger (docker run --shm-size) or take --workers 1"
        )


def in_files(workers: int) -> UserError:
    """What is said where several workers would share tensors that wait in files."""
    return UserError(
        f"workers {workers}: they share tensors in memory, and these wait in files (host-memory): --workers 1"
    )


class _Counter(pickle.Pickler):
    """Goes through everything, and writes no tensor.

    `storages` are bytes by address of what tensors will take in shared memory, each storage once; `paged` is whether
    one of them waits in a file.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.storages: dict[int, int] = {}
        self.paged = False

    def persistent_id(self, thing: Any) -> str | None:
        """Stands for a tensor, which is counted if it is not shared already."""
        if not isinstance(thing, Tensor | nn.Parameter):
            return None
        storage = thing.untyped_storage()
        self.paged |= storage.filename is not None
        if not thing.is_shared():
            self.storages[storage.data_ptr()] = storage.nbytes()
        return "tensor"
