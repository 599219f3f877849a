"""What any program that serves models is told by a command's settings."""

from typing import Protocol

__all__ = ["ServedSettings"]


class ServedSettings(Protocol):
    """Where it computes, and what tokens it is given."""

    @property
    def device(self) -> str: ...

    @property
    def threads(self) -> int | None: ...

    @property
    def seed(self) -> int: ...
