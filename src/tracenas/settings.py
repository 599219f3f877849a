"""Settings in a YAML file: a user's, or those that a run directory keeps."""

from pathlib import Path
from typing import Any

import yaml

from tracenas.errors import UserError

__all__ = ["read_settings"]


def read_settings(path: Path, *, required: bool = True, what: str = "") -> dict[str, Any]:
    """The mapping of a YAML file.

    Args:
        required: it must be there and hold something; otherwise nothing is an empty mapping.
        what: the file is to the user, before its name in messages.

    Raises:
        UserError: if it cannot be read, or holds something else.
    """
    if not required and not path.exists():
        return {}
    where = f"{what} {path}".lstrip()
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{where}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 (byte {error.start})") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise UserError(f"{where}: not YAML{f' at line {mark.line + 1}' if mark is not None else ''}") from error
    if data is None and not required:
        return {}
    if not isinstance(data, dict):
        raise UserError(f"{where}: expected an object, settings of the form key: value")
    return data
