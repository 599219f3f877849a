"""HTML and SVG as strings that cannot be forgotten to be escaped."""

from html import escape

__all__ = ["Attribute", "Markup", "el", "join"]

Attribute = str | float | int | bool | None


class Markup(str):
    """Text that is markup already. Every other `str` is escaped when it becomes part of an element."""

    __slots__ = ()


VOID = frozenset({"meta", "br", "hr", "col"})


def el(name: str, /, *children: str | None, **attributes: Attribute) -> Markup:
    """One element. Children that are not `Markup` are escaped; None (child or attribute) is left out.

    Attribute names lose a trailing underscore and get hyphens: `class_="a"`, `stroke_width=2`. Floats are
    rounded to 2 decimals.
    """
    head = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in VOID:
        return Markup(f"<{name}{head}>")
    return Markup(f"<{name}{head}>{join(*children)}</{name}>")


def join(*children: str | None) -> Markup:
    """Children one after the other, escaped where they are plain text."""
    return Markup("".join(c if isinstance(c, Markup) else escape(c) for c in children if c is not None))


def _attribute(key: str, value: Attribute) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    if value is True:
        return f" {name}"
    if isinstance(value, float):
        text = f"{value:.2f}".rstrip("0").rstrip(".")
        return f' {name}="{"0" if text == "-0" else text}"'
    return f' {name}="{escape(str(value), quote=True)}"'
