"""`tracenas recipes`: the settings files that come with the package."""

from dataclasses import dataclass
from textwrap import fill
from typing import Any

from tracenas.config import RecipesConfig
from tracenas.recipes import Recipe, recipes
from tracenas.reporting.terminal import Outcome, Table

__all__ = ["Recipes", "show"]

_INDENT = " " * 6


@dataclass(frozen=True)
class Recipes(Outcome):
    """The recipes, in their order."""

    found: tuple[Recipe, ...]

    def to_json(self) -> Any:
        """For `--json`."""
        return [{**vars(one), "path": str(one.path)} for one in self.found]

    def tables(self) -> list[Table]:
        """A name and a command each."""
        return [Table("recipes", ("name", "command"), [(one.name, one.command) for one in self.found])]

    def show(self) -> None:
        """Of every recipe what it does, what it needs and how it is called, on stdout."""
        titles = {"recommended": "Recommended", "reproduction": "Reproductions of published settings"}
        for kind, title in titles.items():
            print(f"{title}\n")
            for one in self.found:
                if one.kind == kind:
                    print(f"  {one.command}")
                    print(fill(one.title, 100, initial_indent=_INDENT, subsequent_indent=_INDENT))
                    hardware = f"Hardware: {one.hardware}."
                    print(fill(hardware, 100, initial_indent=_INDENT, subsequent_indent=_INDENT), end="\n\n")


def show(config: RecipesConfig) -> Recipes:
    """What recipes there are."""
    return Recipes(tuple(recipes()))
