"""Settings files that come with the package, by name: those that we would recommend, and those of papers."""

import re
from dataclasses import dataclass
from pathlib import Path

from tracenas.errors import UserError
from tracenas.registry import did_you_mean

__all__ = ["Recipe", "recipe", "recipes"]

_KIND = re.compile(r"(Recommended|Reproduction)\. Hardware: (.*)\.", re.DOTALL)


@dataclass(frozen=True)
class Recipe:
    """A settings file.

    Args:
        name: of it.
        path: where it is.
        title: what it does, a sentence or two.
        kind: `recommended` or `reproduction`: of published settings.
        hardware: what it needs.
        command: the command that takes it, in full.
    """

    name: str
    path: Path
    title: str
    kind: str
    hardware: str
    command: str


def recipes() -> list[Recipe]:
    """All of them, the recommended ones first."""
    found = [_read(path) for path in sorted(Path(__file__).parent.glob("*.yaml"))]
    return sorted(found, key=lambda one: one.kind)


def recipe(name: str) -> Recipe:
    """The recipe of this name.

    Raises:
        UserError: if there is none.
    """
    names = {one.name: one for one in recipes()}
    if name not in names:
        raise UserError(f"no recipe '{name}': {did_you_mean(name, list(names))}")
    return names[name]


def _read(path: Path) -> Recipe:
    """What the comments at its beginning say."""
    head = path.read_text(encoding="utf-8").partition("\n\n")[0]
    paragraphs = [re.sub(r"\n# ?", " ", part).removeprefix("# ").strip() for part in head.split("\n#\n")]
    title, command, *_ = paragraphs
    kind = _KIND.fullmatch(paragraphs[-1])
    if kind is None:
        raise ValueError(f"{path}: its head does not say what kind of recipe it is")
    return Recipe(path.stem, path, title, kind[1].lower(), kind[2], command)
