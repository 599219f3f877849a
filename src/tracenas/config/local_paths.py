"""Local files and directories in settings by absolute paths: what they name is the same in any working directory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from tracenas.config.shared import StageConfig

__all__ = ["absolute_path", "names_same", "with_absolute_paths"]

C = TypeVar("C", bound=StageConfig)

_SOURCES = frozenset({"model", "teacher", "data", "eval_text", "text", "held_out", "second", "validation"})
"""Settings that name a local file or directory, or something on the hub."""


def absolute_path(path: str | Path) -> Path:
    """The path from the root; links in it stay, unless `..` follows them."""
    return Path(path).resolve() if ".." in Path(path).parts else Path(path).absolute()


def with_absolute_paths(config: C) -> C:
    """The settings, those of sections included, with absolute paths of what is here; hub ids stay as they are."""
    values = {name: getattr(config, name) for name in type(config).model_fields}
    located = {name: _located(name, value) for name, value in values.items()}
    return config.model_copy(update={name: value for name, value in located.items() if value != values[name]})


def names_same(one: object, other: object) -> bool:
    """Whether two values of a setting are equal, or lead to the same files from here."""
    if not isinstance(one, str) or not isinstance(other, str):
        return one == other
    places = [[absolute_path(part.strip()) for part in value.split(",")] for value in (one, other)]
    return places[0] == places[1]


def _located(setting: str, value: Any) -> Any:
    if isinstance(value, Path):
        return absolute_path(value)
    if isinstance(value, Mapping):
        return {key: _located(str(key), one) for key, one in value.items()}
    if not isinstance(value, str) or not value:
        return value
    if setting in ("metric", "ratios"):  # a registered name, too
        is_file = Path(value).suffix == ".json" or (setting == "metric" and (Path(value) / "best.json").is_file())
    elif setting in _SOURCES and "=" in value and not Path(value).exists():  # a mixture: a.jsonl=0.7,b.txt=0.3
        parts = (part.strip().rpartition("=") for part in value.split(","))
        return ",".join(f"{_located(setting, name)}={weight}" for name, _, weight in parts)
    else:
        is_file = setting in _SOURCES and Path(value).exists()
    return str(absolute_path(value)) if is_file else value
