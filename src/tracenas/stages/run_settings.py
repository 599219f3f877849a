"""The settings of a resumable run: written once, compared when it goes on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tracenas.errors import UserError
from tracenas.rundir import atomic_path
from tracenas.stages.results import to_plain

__all__ = ["CONFIG", "same_settings", "write_settings"]

CONFIG = "config.yaml"


def write_settings(out: Path, settings: Mapping[str, Any]) -> None:
    """Write RUN/config.yaml."""
    import yaml

    text = yaml.safe_dump(to_plain(dict(settings)), sort_keys=False)
    with atomic_path(out / CONFIG) as temporary:
        temporary.write_text(text, encoding="utf-8")


def same_settings(out: Path, settings: Mapping[str, Any], ignore: tuple[str, ...]) -> dict[str, Any]:
    """The run's settings; refuses to go on with others. `None` and `auto` stand for the run's own.

    Raises:
        UserError: naming the setting.
    """
    import yaml

    path = out / CONFIG
    try:
        stored = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from error
    if not isinstance(stored, dict):
        raise UserError(f"{path}: holds no settings")
    for key, value in to_plain(dict(settings)).items():
        if key in ignore or value in (None, "auto"):
            continue
        if stored.get(key) != value:
            raise UserError(
                f"--resume with another {key.replace('_', '-')}: the run has {stored.get(key)!r}, not {value!r}"
            )
    return stored
