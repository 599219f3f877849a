"""Groups of a command's settings, as help texts show them: what it needs, what one may want, and the rest."""

from inspect import get_annotations

from tracenas.config.shared import StageConfig, setting_names

__all__ = ["NEEDED", "WANTED", "groups"]

NEEDED, WANTED = "What you need", "What you may want"
"""Titles of the groups that `--help` shows; `--help-all` shows all."""

_OWN = "Further settings"


def groups(kind: type[StageConfig]) -> dict[str, list[str]]:
    """Title → names of settings: needed ones, wanted ones, and the rest by the class that they come from."""
    names = [name for name in setting_names(kind) if name not in kind.sections]
    required = [name for name in names if kind.model_fields[name].is_required()]
    out = {NEEDED: [*required, *kind.needed], WANTED: list(kind.wanted)}
    rest: dict[str, list[str]] = {}
    for name in names:
        if name not in (*out[NEEDED], *kind.wanted):
            rest.setdefault(_title(kind, name), []).append(name)
    return out | dict(reversed(rest.items()))


def _title(kind: type[StageConfig], name: str) -> str:
    owner = next(base for base in reversed(kind.__mro__) if name in get_annotations(base))
    return _OWN if owner is kind else (owner.__doc__ or "").split("\n")[0].rstrip(".")
