"""What must be the same on every node for scores to be the same: this package's code, and what it computes by."""

import hashlib
import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["difference", "versions"]

_LIBRARIES = ("torch", "transformers", "numpy")


@cache
def versions() -> dict[str, str]:
    """Of this process: `tracenas` with a hash of its code, the libraries, and the processor's architecture."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    found = {name: _version(name) for name in ("tracenas", *_LIBRARIES)}
    code = f"{found['tracenas']} (code {digest.hexdigest()[:12]})"
    return {**found, "tracenas": code, "machine": platform.machine()}


def difference(wanted: Mapping[str, str], found: Mapping[str, str]) -> str | None:
    """The first thing that is another one, in words; None where nothing is."""
    for name, value in wanted.items():
        if found.get(name) != value:
            return f"{name} is {found.get(name, 'absent')}, here it is {value}"
    return None


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"
