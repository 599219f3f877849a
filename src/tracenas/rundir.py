"""Run directories: files that are there whole or not at all, what killed processes leave, and provenance."""

import errno
import fcntl
import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tracenas.error_log import is_error_log
from tracenas.errors import UserError, disk_trouble
from tracenas.git_lfs import refuse_pointer
from tracenas.hub.commits import commits

__all__ = [
    "LOCK",
    "REPORT",
    "UNFINISHED",
    "atomic_path",
    "cache_directory",
    "check_file",
    "check_free",
    "check_own_json",
    "default_mode",
    "free_of_ours",
    "fsync",
    "holding",
    "make_directory",
    "provenance",
    "read_json",
    "require_free",
    "sha256",
    "sweep",
    "temporary_prefix",
    "undone_on_error",
    "write_json",
    "writing",
]


UNFINISHED = ".unfinished-"
"""What the name of everything unfinished begins with."""


def temporary_prefix(path: Path) -> str:
    """How the name of the file or directory begins that will become `path`."""
    return f"{UNFINISHED}{path.name}."


LOCK = ".lock"
"""In a directory that a process has for itself (`locks.locked`)."""
REPORT = "report.html"
"""The page of a run, in its directory."""

_new_files: ContextVar[tuple[dict[Path, tuple[int, int]], ...]] = ContextVar("new_files", default=())


def sweep(directory: Path) -> None:
    """Remove what a killed process left unfinished in a run directory, but nothing that a process is still writing.

    Raises:
        UserError: if it cannot be removed.
    """
    try:
        for unfinished in directory.glob(f"{UNFINISHED}*"):
            with holding(unfinished) as abandoned:
                if abandoned:
                    shutil.rmtree(unfinished) if unfinished.is_dir() else unfinished.unlink()
    except OSError as error:
        raise UserError(f"run directory {directory}: {error.strerror or error}") from error


@contextmanager
def holding(path: Path) -> Iterator[bool]:
    """Show other processes that a file or directory is being written; False if one of them is writing it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        alone = True
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            alone = False
        except OSError:
            pass  # a file system without such locks
        yield alone
    finally:
        os.close(handle)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tells a file system's failure to write `path` in one line.

    Raises:
        UserError: for a full or read-only disk, a quota, a missing permission.
    """
    try:
        yield
    except Exception as error:
        if reason := disk_trouble(error):
            raise UserError(f"cannot write {path}: {reason}") from error
        raise


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, renamed over it when the block ends without an error; all of it on disk.

    Raises:
        UserError: if the directory cannot be written or the disk is full; `path` is then as it was.
    """
    temporary: Path | None = None
    try:
        with writing(path):
            make_directory(path.parent)
            handle, name = tempfile.mkstemp(prefix=temporary_prefix(path), suffix=path.suffix, dir=path.parent)
            os.close(handle)
            temporary = Path(name)
            with holding(temporary):
                yield temporary
                fsync(temporary)
                temporary.chmod(default_mode(0o666))
                replaced, identity = path.exists(), _identity(temporary)
                temporary.replace(path)
            for files in _new_files.get():
                if path in files or not replaced:
                    files[path] = identity
            fsync(path.parent)
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def undone_on_error() -> Iterator[None]:
    """If the block ends with an error, the files are removed that `atomic_path` made in it, and no other one."""
    files: dict[Path, tuple[int, int]] = {}
    token = _new_files.set((*_new_files.get(), files))
    try:
        yield
    except Exception:
        for path, identity in files.items():
            with suppress(OSError):
                if _identity(path) == identity:
                    path.unlink()
        raise
    finally:
        _new_files.reset(token)


def _identity(path: Path) -> tuple[int, int]:
    """Tells a file from a later one of the same name: systems give the number of a removed file again."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def make_directory(path: Path) -> None:
    """Make a directory and those above it, each of them on disk."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        fsync(folder.parent)


def default_mode(mode: int) -> int:
    """The permissions that the user's umask leaves of `mode`."""
    umask = os.umask(0o077)  # until it is set back, what other threads make is private
    os.umask(umask)
    return mode & ~umask


def fsync(path: Path) -> None:
    """Have a file's content, or a directory's entries, on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that does not know it of directories
            raise
    finally:
        os.close(handle)


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
        refuse_pointer(path)
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
    directory = os.environ.get("XDG_CACHE_HOME")
    return (Path(directory) if directory else Path.home() / ".cache") / "tracenas"


def provenance(**facts: Any) -> dict[str, Any]:
    """Versions of what numbers depend on, commits on the hub, and what else the caller knows (its seed)."""
    versions = {}
    for package in ("tracenas", "torch", "transformers", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    hub = {"hub": known} if (known := commits()) else {}
    return {"versions": versions, "python": platform.python_version(), "machine": platform.machine(), **hub, **facts}


def free_of_ours(directory: Path) -> bool:
    """Whether nothing is in a directory but a lock and the log of an earlier error."""
    return all(path.name == LOCK or is_error_log(path) for path in directory.iterdir())


def require_free(directory: Path, *, what: str = "output directory") -> None:
    """Refuse a directory that holds something already, or that cannot be made.

    Raises:
        UserError: if so.
    """
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{what} {directory}: is a file")
    try:
        if directory.is_dir() and not free_of_ours(directory):
            raise UserError(f"{what} {directory}: exists and is not empty; choose another or remove it")
        make_directory(directory)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise UserError(f"{what} {directory}: {error.strerror or error}") from error


def check_free(directory: Path, *, what: str = "output directory") -> None:
    """`require_free` before work whose result comes there at its end: nothing is left of what was made to see.

    Raises:
        UserError: as `require_free`, and for a mount point, which no directory can take the place of.
    """
    if directory.is_mount():
        raise UserError(f"{what} {directory}: is a mount point; name a directory in it")
    with _leaving_nothing(directory):
        require_free(directory, what=what)


@contextmanager
def _leaving_nothing(directory: Path) -> Iterator[None]:
    """What is made of a directory and those above it in the block is gone in the end."""
    missing = [folder for folder in (directory, *directory.parents) if not folder.exists()]
    try:
        yield
    finally:
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()


def check_file(file: Path, *, what: str = "out") -> None:
    """Refuse a file that cannot be written before the work whose result it holds; nothing is made.

    Raises:
        UserError: for a directory or a device in its place, and a directory that cannot be made or written.
    """
    if file.exists() and not file.is_file():
        raise UserError(f"{what} {file}: {'is a directory' if file.is_dir() else 'is a device'}; expected a file")
    with _leaving_nothing(file.parent):
        try:
            make_directory(file.parent)
            with tempfile.TemporaryFile(dir=file.parent):
                pass
        except OSError as error:
            raise UserError(f"{what} {file}: {error.strerror or error}") from error


def check_own_json(file: Path, command: str, keys: Collection[str]) -> None:
    """Refuse to replace a file that a command has not written.

    Args:
        keys: what its files have, of which some other ones have not all.

    Raises:
        UserError: naming what is there.
    """
    stored: object = None
    if file.exists():
        with suppress(UserError):
            stored = read_json(file)
        if not isinstance(stored, dict) or not stored.keys() >= set(keys):
            raise UserError(f"out {file}: exists, and is not of `tracenas {command}`; choose another name or remove it")
