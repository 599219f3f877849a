"""A serving program in a process of its own, asked line by line: a file that is not to its liking may end it.

The program is a script that another Python may run. Its first line says what is there; then a line of JSON is asked,
and answered by one.
"""

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from tracenas.errors import UserError

__all__ = ["Served"]


class Served:
    """A program that answers; a context manager.

    Args:
        name: for messages.
        command: starts it.
        environment: that it has; None: this process's.

    Raises:
        UserError: if it does not start, or prints something before the script does.
    """

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the process)
        try:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                env=environment,
            )
        except OSError as error:
            raise UserError(f"{command[0]}: {error.strerror or error}; expected a Python interpreter") from error
        try:
            self.facts: dict[str, Any] = self._answer()
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> "Served":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                with suppress(BrokenPipeError):  # what it did not read any more
                    stream.close()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request.

        Raises:
            UserError: with the last line that the program wrote, if it ended, and for an answer that is none.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._ended()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._ended()
        try:
            answer = json.loads(line)
        except ValueError as error:
            raise self._strange(line) from error
        if not isinstance(answer, dict):
            raise self._strange(line)
        return answer

    def _strange(self, line: str) -> UserError:
        said = line.strip()[:80]
        return UserError(f"{self.name} said '{said}', which is no answer: expected a Python that prints nothing itself")

    def _ended(self) -> None:
        status = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        raise UserError(f"{self.name} ended (exit status {status}): {(said or ['no message'])[-1][:240]}")
