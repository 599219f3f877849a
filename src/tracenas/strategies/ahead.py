"""Sequences whose items are made when they are asked for."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar, overload

__all__ = ["Ahead"]

T_co = TypeVar("T_co", covariant=True)


class Ahead(Sequence[T_co]):
    """What an iterator gives, kept: going through it makes one after the other, `len` and places behind make all.

    Anybody may go through it at any time: what others had made comes at once.
    """

    def __init__(self, source: Iterable[T_co]) -> None:
        self._source = iter(source)
        self._made: list[T_co] = []

    def _make(self) -> bool:
        for item in self._source:
            self._made.append(item)
            return True
        return False

    def __iter__(self) -> Iterator[T_co]:
        place = 0
        while place < len(self._made) or self._make():
            yield self._made[place]
            place += 1

    def __bool__(self) -> bool:
        return bool(self._made) or self._make()

    def __len__(self) -> int:
        while self._make():
            pass
        return len(self._made)

    @overload
    def __getitem__(self, place: int) -> T_co: ...

    @overload
    def __getitem__(self, place: slice) -> list[T_co]: ...

    def __getitem__(self, place: Any) -> Any:
        _ = len(self)
        return self._made[place]
