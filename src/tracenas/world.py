"""The processes that a launcher has started together."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tracenas.errors import UserError

__all__ = ["World", "without_leftovers"]


@dataclass(frozen=True)
class World:
    """The processes of a launch by torchrun or `accelerate launch`, as its environment tells."""

    rank: int = 0
    size: int = 1

    @classmethod
    def from_environment(cls) -> "World":
        """One process unless WORLD_SIZE says otherwise: RANK alone is left over from something else.

        Raises:
            UserError: for values that no launcher sets.
        """
        texts = [os.environ.get("RANK") or "0", os.environ.get("WORLD_SIZE") or "1"]
        if texts[1] == "1":
            return cls()
        rank, size = (int(text) if text.isdecimal() else -1 for text in texts)
        if not 0 <= rank < size:
            raise UserError(f"RANK={texts[0]} of WORLD_SIZE={texts[1]}: no launcher sets these; unset them")
        return cls(rank, size)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0


@contextmanager
def without_leftovers() -> Iterator[None]:
    """Hide half a launch (RANK without WORLD_SIZE, or only LOCAL_RANK) from libraries that look for one themselves."""
    hidden = {}
    if not (os.environ.get("RANK") and os.environ.get("WORLD_SIZE")):
        names = [name for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE") if name in os.environ]
        hidden = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(hidden)
