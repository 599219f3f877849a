"""Named components, imported on first use where that costs time: a line per family, proxy, saliency or strategy."""

import difflib
from collections.abc import Collection, Iterator
from importlib.metadata import entry_points
from pkgutil import resolve_name
from typing import Generic, TypeVar

from tracenas.errors import UserError

__all__ = ["Registry", "closest", "did_you_mean"]

T = TypeVar("T")


def did_you_mean(name: str, names: Collection[str], accepted: str = "") -> str:
    """`did you mean 'x'? accepted: …`; without a similar name only what is accepted.

    Args:
        accepted: in words, where there are too many names to list them.
    """
    near = closest(name, names)
    hint = f"did you mean '{near}'? " if near else ""
    return f"{hint}accepted: {accepted or ', '.join(sorted(names))}"


def closest(name: str, names: Collection[str], cutoff: float = 0.6) -> str | None:
    """The name that is most similar; None below a similarity of `cutoff` (difflib's ratio)."""
    return next(iter(difflib.get_close_matches(name, names, n=1, cutoff=cutoff)), None)


class Registry(Generic[T]):
    """Names to components, `"module:attribute"` imported on first use.

    Other packages add to it through the entry-point group `tracenas.<kind>`.

    Args:
        kind: what the components are, in the singular (`proxy`); used in messages.
        builtin: name → `"module:attribute"`.
    """

    def __init__(self, kind: str, builtin: dict[str, str] | None = None) -> None:
        self.kind = kind
        self._targets = dict(builtin or {})
        self._loaded: dict[str, T] = {}
        self._plugins_seen = False

    def names(self) -> list[str]:
        """All known names, sorted."""
        self._plugins()
        return sorted({*self._targets, *self._loaded})

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: str) -> bool:
        return name in self.names()

    def add(self, name: str, component: T) -> None:
        """Register an object in this process."""
        self._loaded[name] = component

    def check(self, name: str) -> None:
        """Refuse a name that nothing has; nothing is imported.

        Raises:
            UserError: for an unknown name, with a suggestion.
        """
        if name not in self:
            raise UserError(f"unknown {self.kind} '{name}': {did_you_mean(name, self.names())}")

    def get(self, name: str) -> T:
        """The component called `name`.

        Raises:
            UserError: for an unknown name, with a suggestion.
        """
        if name not in self._loaded:
            if name not in self._targets:
                self.check(name)
            self._loaded[name] = resolve_name(self._targets[name])
        return self._loaded[name]

    def _plugins(self) -> None:
        if not self._plugins_seen:
            self._plugins_seen = True
            for point in entry_points(group=f"tracenas.{self.kind}"):
                self._targets.setdefault(point.name, point.value)
