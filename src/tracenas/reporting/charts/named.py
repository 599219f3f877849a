"""A picture with what a page says of it."""

from dataclasses import dataclass

from markupsafe import Markup

__all__ = ["NamedChart"]


@dataclass(frozen=True)
class NamedChart:
    """A picture under its name and a note; `legend` holds (style, name) of what is drawn."""

    name: str
    note: str
    picture: Markup
    legend: list[tuple[str, str]]
