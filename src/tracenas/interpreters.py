"""Python interpreters that settings name, and what they say of themselves."""

import subprocess
from collections.abc import Mapping
from pathlib import Path

from tracenas.errors import UserError

__all__ = ["ask_interpreter"]


def ask_interpreter(
    python: Path, code: str, setting: str, environment: Mapping[str, str] | None = None
) -> tuple[Path, "subprocess.CompletedProcess[str]"]:
    """How an interpreter is to be started from any directory, and what running `code` in it came to.

    Args:
        setting: that names it, for the message.
        environment: of the process; None: this one's.

    Raises:
        UserError: if there is nothing to run.
    """
    if python.is_file():
        python = python.absolute()  # else it would be looked for on the PATH
    try:
        command = [str(python), "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    except OSError as error:
        raise UserError(f"{setting} {python}: {error.strerror or error}; expected a Python interpreter") from error
    return python, done
