"""An append-only journal: what a killed run has learnt is there when it goes on."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tracenas.errors import UserError
from tracenas.rundir import make_directory, writing

__all__ = ["Journal"]


class Journal:
    """Append-only JSON lines; each line is on disk before `append` returns.

    A last line that was cut off by a crash is dropped (and truncated away before the next append); a corrupt
    line anywhere else is an error that names it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._valid_bytes: int | None = None
        self._size: int
        """Of the file as it was last seen: what is behind the valid bytes was cut off."""

    def read(self) -> list[dict[str, Any]]:
        """All complete records.

        Raises:
            UserError: for a corrupt line that is not the last one.
        """
        try:
            raw = self.path.read_bytes()
        except FileNotFoundError:
            self._valid_bytes = self._size = 0
            return []
        except OSError as error:
            raise UserError(f"{self.path}: {error.strerror or error}") from error
        records: list[dict[str, Any]] = []
        valid = raw.rfind(b"\n") + 1
        for number, line in enumerate(raw[:valid].split(b"\n")[:-1], start=1):
            try:
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise ValueError("not an object")
            except (ValueError, RecursionError) as error:
                message = f"{self.path}: line {number} is corrupt ({error}); remove it or restore the file"
                raise UserError(message) from error
            records.append(record)
        self._valid_bytes, self._size = valid, len(raw)
        return records

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one record durably.

        Raises:
            UserError: if it cannot be written (full disk), or another process has written to it since; the records
                before it are intact.
        """
        if self._valid_bytes is None:
            self.read()
        assert self._valid_bytes is not None
        line = (json.dumps(record, allow_nan=False) + "\n").encode()
        with writing(self.path):
            make_directory(self.path.parent)
            with self.path.open("r+b" if self.path.exists() else "x+b", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                if size != self._size:
                    raise UserError(
                        f"{self.path}: {size:,} bytes, where this process left {self._size:,}: another one has written "
                        "to it; nothing was added"
                    )
                file.truncate(self._valid_bytes)
                file.seek(self._valid_bytes)
                rest = memoryview(line)
                try:
                    while rest:
                        rest = rest[file.write(rest) :]
                    os.fsync(file.fileno())
                finally:
                    self._size = os.fstat(file.fileno()).st_size
        self._valid_bytes += len(line)
