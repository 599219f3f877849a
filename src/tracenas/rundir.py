"""Run directories: atomic writes, provenance, an append-only journal and what resuming needs of it."""

import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tracenas.errors import UserError

__all__ = [
    "UNFINISHED",
    "Journal",
    "atomic_path",
    "cache_directory",
    "provenance",
    "read_json",
    "require_free",
    "sha256",
    "sweep",
    "temporary_prefix",
    "write_json",
]


UNFINISHED = ".unfinished-"
"""What the name of everything unfinished begins with."""


def temporary_prefix(path: Path) -> str:
    """How the name of the file or directory begins that will become `path`."""
    return f"{UNFINISHED}{path.name}."


def sweep(directory: Path) -> None:
    """Remove what a killed process left unfinished in a run directory; call it before this run writes there.

    Raises:
        UserError: if it cannot be removed.
    """
    try:
        for left in directory.glob(f"{UNFINISHED}*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    except OSError as error:
        raise UserError(f"run directory {directory}: {error.strerror or error}") from error


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, renamed over it (after fsync) when the block ends without an error.

    Raises:
        UserError: if the directory cannot be written or the disk is full; `path` is then as it was.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=temporary_prefix(path), suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None and temporary.exists():
            temporary.unlink()


def write_json(path: Path, data: object) -> None:
    """Write indented JSON atomically; NaN and infinities are refused (they are not JSON)."""
    text = json.dumps(data, indent=2, allow_nan=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        UserError: if it cannot be read, with the line and column of a syntax error.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON that can be read: {error}") from error


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def cache_directory() -> Path:
    """Where what can be made or fetched again is kept: `$XDG_CACHE_HOME/tracenas`, else `~/.cache/tracenas`."""
    given = os.environ.get("XDG_CACHE_HOME")
    return (Path(given) if given else Path.home() / ".cache") / "tracenas"


def provenance(**facts: Any) -> dict[str, Any]:
    """Versions of what numbers depend on, and whatever else the caller knows (model, seed, command)."""
    versions = {}
    for package in ("tracenas", "torch", "transformers", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {"versions": versions, "python": platform.python_version(), "machine": platform.machine(), **facts}


def require_free(directory: Path, *, what: str = "output directory") -> None:
    """Refuse a directory that holds something already, or that cannot be made.

    Raises:
        UserError: if so.
    """
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{what} {directory}: is a file")
    if directory.is_dir() and any(directory.iterdir()):
        raise UserError(f"{what} {directory}: exists and is not empty; choose another or remove it")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise UserError(f"{what} {directory}: {error.strerror or error}") from error


class Journal:
    """Append-only JSON lines; each line is on disk before `append` returns.

    A last line that was cut off by a crash is dropped (and truncated away before the next append); a corrupt
    line anywhere else is an error that names it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._valid_bytes: int | None = None

    def read(self) -> list[dict[str, Any]]:
        """All complete records.

        Raises:
            UserError: for a corrupt line that is not the last one.
        """
        try:
            raw = self.path.read_bytes()
        except FileNotFoundError:
            self._valid_bytes = 0
            return []
        except OSError as error:
            raise UserError(f"{self.path}: {error.strerror or error}") from error
        records: list[dict[str, Any]] = []
        lines = raw.split(b"\n")
        valid = 0
        for number, line in enumerate(lines, start=1):
            last = number >= len(lines) - (1 if not lines[-1] else 0)
            complete = number < len(lines)
            if not line and number == len(lines):
                break
            try:
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise ValueError("not an object")
            except (ValueError, RecursionError) as error:
                if last and not complete:
                    break
                raise UserError(
                    f"{self.path}: line {number} is corrupt ({error}); remove it or restore the file"
                ) from error
            if not complete:
                break
            records.append(record)
            valid += len(line) + 1
        self._valid_bytes = valid
        return records

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one record durably.

        Raises:
            UserError: if it cannot be written (full disk); the records before it are intact.
        """
        if self._valid_bytes is None:
            self.read()
        assert self._valid_bytes is not None
        line = (json.dumps(record, allow_nan=False) + "\n").encode()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("r+b" if self.path.exists() else "w+b") as file:
                file.truncate(self._valid_bytes)
                file.seek(self._valid_bytes)
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror or error}") from error
        self._valid_bytes += len(line)
