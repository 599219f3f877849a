"""The exceptions that are the user's to read."""

import errno
import os
import re

__all__ = ["CheckFailed", "UserError", "disk_trouble", "first_line", "system_error"]

_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")
_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")


class UserError(Exception):
    """The user's input is wrong: one clear line saying what, where, and what would be accepted.

    The command line prints the message without a traceback and exits with status 2. Everything else that
    escapes is a defect of ours (exit status 1).
    """


class CheckFailed(Exception):
    """The input was right, but what was made of it does not pass its check, and was removed: one clear line.

    The command line prints the message without a traceback and exits with status 1.
    """


def first_line(error: BaseException) -> str:
    """What another library's exception says, in one line; its type if it says nothing."""
    said = str(error).strip()
    return said.splitlines()[0] if said else type(error).__name__


def system_error(error: BaseException) -> int | None:
    """The system's number of what failed; safetensors, tokenizers and NumPy pass it on in their text only."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    text = str(error)
    if match := _SYSTEM_ERROR.search(text):
        return int(match[1])
    return errno.ENOSPC if "No space left" in text or _SHORT_WRITE.search(text) else None


def disk_trouble(error: BaseException) -> str:
    """The system's words if the file system failed, else ''."""
    if isinstance(error, UserError):
        return ""
    number = system_error(error)
    return os.strerror(number) if number is not None else str(error) if isinstance(error, OSError) else ""
