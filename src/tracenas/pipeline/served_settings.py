"""What any program that serves models is told by a command's settings."""

import os
from typing import Protocol

from tracenas.errors import UserError
from tracenas.formats import plural

__all__ = ["ServedSettings", "visible_gpu"]


class ServedSettings(Protocol):
    """Where it computes, and what tokens it is given."""

    @property
    def device(self) -> str: ...

    @property
    def threads(self) -> int | None: ...

    @property
    def seed(self) -> int: ...


def visible_gpu(device: str) -> str:
    """What CUDA_VISIBLE_DEVICES is for a program that is to see the GPU `cuda:N` alone: the N-th that is visible here.

    Raises:
        UserError: if fewer are.
    """
    index, visible = int(device.partition(":")[2]), os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return str(index)
    names = [name.strip() for name in visible.split(",") if name.strip()]
    if index >= len(names):
        raise UserError(f"device {device}: CUDA_VISIBLE_DEVICES={visible} leaves {plural(len(names), 'GPU')}")
    return names[index]
