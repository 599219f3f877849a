"""A run directory's JSON objects and YAML settings; what is not there is empty, what is wrong is named."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tracenas.errors import UserError
from tracenas.rundir import read_json

__all__ = ["mapping", "read_object", "read_settings"]


def read_object(path: Path, required: bool = False) -> dict[str, Any]:
    """A JSON object; empty where the file is missing.

    Raises:
        UserError: if it is there and cannot be read or is something else, or is missing though `required`.
    """
    return dict(mapping(read_json(path), str(path))) if required or path.exists() else {}


def read_settings(path: Path) -> dict[str, Any]:
    """A YAML file of settings; empty where it is missing.

    Raises:
        UserError: if it is there and cannot be read, or is something else.
    """
    if not path.exists():
        return {}
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    return dict(mapping(data, str(path)))


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
