"""Pages from the templates of this folder: one file each, no external resource, every text escaped."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from tracenas import formats
from tracenas.reporting import labels
from tracenas.reporting.charts.svg import hatch
from tracenas.rundir import atomic_path

__all__ = ["render", "write_page"]


def render(template: str, **values: object) -> str:
    """A template of this folder, filled."""
    return _environment.get_template(template).render(**values)


def write_page(path: Path, page: str) -> Path:
    """Write a page and return its path.

    Raises:
        UserError: if it cannot be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, value as text) of nested mappings; lists on one line, nothing as –."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flatten(value, f"{name}.")
        elif value is None:
            yield name, formats.MISSING
        elif isinstance(value, list | tuple):
            yield name, ", ".join(map(str, value))
        elif isinstance(value, bool):
            yield name, "yes" if value else "no"
        else:
            yield name, str(value)


_environment = Environment(
    loader=PackageLoader("tracenas.reporting", "pages"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_environment.filters |= {"flatten": flatten, "hatch": hatch}
for _module in (formats, labels):
    for _name in _module.__all__:
        (_environment.globals if _name.isupper() else _environment.filters)[_name] = getattr(_module, _name)
