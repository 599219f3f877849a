"""The one exception that is the user's to read."""

__all__ = ["UserError"]


class UserError(Exception):
    """The user's input is wrong: one clear line saying what, where, and what would be accepted.

    The command line prints the message without a traceback and exits with status 2. Everything else that
    escapes is a defect of ours (exit status 1).
    """
