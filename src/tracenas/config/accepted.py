"""What a setting accepts: read from its type, and from the registry that `Accepts` names, plug-ins included."""

import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

__all__ = ["Accepts", "accepted", "choices", "type_parts"]

_METAVARS = {int: "N", float: "NUMBER", Path: "PATH"}
_IN_WORDS = {int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}


@dataclass(frozen=True)
class Accepts:
    """What a text may be; stands beside its type in `Annotated`.

    Args:
        fixed: values.
        registered: further values, such as the names of a registry; asked when they are shown.
        several: whether they may be joined by commas.
        file: whether a path may stand there.
        metavar: what stands for the value in help texts; NAME where there are values.
    """

    fixed: tuple[str, ...] = ()
    registered: Callable[[], Iterable[str]] = tuple
    several: bool = False
    file: bool = False
    metavar: str = ""

    @property
    def values(self) -> tuple[str, ...]:
        """All that have a name."""
        return tuple(dict.fromkeys((*self.fixed, *self.registered())))

    @property
    def placeholder(self) -> str:
        """What stands for the value in help texts."""
        name = self.metavar or ("NAME" if self.values else "TEXT")
        return f"{name},…" if self.several else name


def accepted(field: FieldInfo) -> Accepts:
    """What a setting accepts; of a `Literal` all its values are in the metavar."""
    types_, marks = type_parts(field.annotation)
    if found := [mark for mark in (*field.metadata, *marks) if isinstance(mark, Accepts)]:
        return found[0]
    if values := [value for kind in types_ if get_origin(kind) is Literal for value in get_args(kind)]:
        return Accepts(tuple(values), metavar="|".join(values))
    return Accepts(file=Path in types_, metavar=next((_METAVARS[kind] for kind in types_ if kind in _METAVARS), ""))


def choices(field: FieldInfo) -> list[str]:
    """What a setting accepts, in words: the values of a `Literal`, and what else may stand there."""
    kinds, _ = type_parts(field.annotation)
    values = [str(value) for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)]
    return values + [words for kind, words in _IN_WORDS.items() if kind in kinds]


def type_parts(annotation: Any) -> tuple[list[Any], list[Any]]:
    """The types of a union, and what is annotated to them."""
    if get_origin(annotation) is Annotated:
        inner, *marks = get_args(annotation)
        kinds, further = type_parts(inner)
        return kinds, [*marks, *further]
    if get_origin(annotation) in (Union, types.UnionType):
        parts = [type_parts(kind) for kind in get_args(annotation)]
        return [k for kinds, _ in parts for k in kinds], [m for _, marks in parts for m in marks]
    return [annotation], []
