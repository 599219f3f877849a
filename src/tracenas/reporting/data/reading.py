"""A run directory's JSON objects; what is not there is empty, what is wrong is named."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracenas.errors import UserError
from tracenas.rundir import read_json

__all__ = ["Fields", "mapping", "read_object"]


def read_object(path: Path, required: bool = False) -> dict[str, Any]:
    """A JSON object; empty where the file is missing.

    Raises:
        UserError: if it is there and cannot be read or is something else, or is missing though `required`.
    """
    return dict(mapping(read_json(path), str(path))) if required or path.exists() else {}


def mapping(value: object, where: str) -> Mapping[str, Any]:
    """The value as an object; None is an empty one.

    Raises:
        UserError: if it is something else.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise UserError(f"{where}: expected an object, found {type(value).__name__}")
    return value


@dataclass(frozen=True)
class Fields:
    """Typed values of a JSON object: None or empty where a key is missing.

    Every method raises UserError for a value of another type.

    Args:
        where: file and place in it, for messages.
    """

    values: Mapping[str, Any]
    where: str

    def place(self, key: str) -> str:
        """Where the value of a key stands."""
        return f"{self.where}: {key}"

    def number(self, key: str) -> float | None:
        """A number; None where it is not finite."""
        value = self.values.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{self.where}: '{key}' must be a number, found {value!r}")
        return float(value) if math.isfinite(value) else None

    def integer(self, key: str) -> int | None:
        """A number, rounded."""
        value = self.number(key)
        return None if value is None else round(value)

    def text(self, key: str) -> str | None:
        """Any value as text."""
        value = self.values.get(key)
        return None if value is None else str(value)

    def items(self, key: str) -> Sequence[Any]:
        """A list."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, list):
            raise UserError(f"{self.place(key)}: expected a list, found {type(value).__name__}")
        return value or []

    def numbers(self, key: str) -> tuple[float | None, ...]:
        """A list of numbers."""
        return tuple(Fields({key: value}, self.where).number(key) for value in self.items(key))

    def fields(self, key: str) -> "Fields":
        """An object."""
        return Fields(mapping(self.values.get(key), self.place(key)), self.place(key))
