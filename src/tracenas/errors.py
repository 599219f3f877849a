"""The exceptions that are the user's to read."""

__all__ = ["CheckFailed", "UserError", "first_line"]


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
