"""The exceptions that are the user's to read."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = [
    "CheckFailed",
    "UserError",
    "catchable",
    "disk_failures",
    "disk_trouble",
    "first_line",
    "one_line",
    "system_error",
]

_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")
_REFUSED = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG),
    *(errno.ENAMETOOLONG, errno.ELOOP),  # a text, say, in the place of a file's name
)
_LONGEST_NAME = 200
"""Characters of a name in a message."""
_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")


class UserError(Exception):
    """The user's input is wrong: one clear line saying what, where, and what would be accepted.

    The command line prints the message without a traceback and exits with status 2. Everything else that
    escapes is a defect of ours (exit status 1). A name or a library's words that have line breaks lose them.
    """

    def __str__(self) -> str:
        return " ".join(super().__str__().splitlines())


class CheckFailed(Exception):
    """The input was right, but what was made of it does not pass its check, and was removed: one clear line.

    The command line prints the message without a traceback and exits with status 1.
    """


@contextmanager
def catchable() -> Iterator[None]:
    """Make a panic of a library in Rust (tokenizers), which no `except Exception` sees, an ordinary error.

    Raises:
        RuntimeError: with what the panic says.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # pyo3 has no name for it that could be imported
            raise
        raise RuntimeError(str(error)) from error


@contextmanager
def disk_failures() -> Iterator[None]:
    """What no reader or writer has told in its own words: one line all the same.

    Raises:
        UserError: for a full or read-only disk, a quota, a missing permission, a name that no file can have.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except Exception as error:
        if isinstance(error, UserError) or system_error(error) not in _REFUSED:
            raise
        name = str(getattr(error, "filename", None) or "a file")
        shown = name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}…"
        raise UserError(f"cannot write or read {shown}: {disk_trouble(error)}") from error


def first_line(error: BaseException) -> str:
    """What another library's exception says, in one line; its type if it says nothing."""
    return _message(error).splitlines()[0]


def one_line(error: BaseException, limit: int = 400) -> str:
    """The same with every line of the message, whose last one may be the remedy; cut after `limit` characters."""
    text = " ".join(_message(error).split())
    return text if len(text) <= limit else f"{text[:limit]}…"


def _message(error: BaseException) -> str:
    """The message; a `KeyError`'s as it was written, with its type where it is a bare key, which says nothing alone."""
    if isinstance(error, KeyError) and len(error.args) == 1:
        key = str(error.args[0]).strip()
        return key if " " in key else f"KeyError: {key!r}"
    return str(error).strip() or type(error).__name__


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
