"""`ORGANISATION/NAME@REVISION`: models on the hub, and the commit that each name stands for while a command runs.

Data sets go by `datasets/ORGANISATION/NAME` here, as the hub's own addresses have it.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

__all__ = ["COMMITS", "HubName", "commits", "hub_name", "is_pinning", "pinned", "pinning", "recording", "remember"]

COMMITS = "hub.json"
"""In a run directory: `{name: commit}` of the models and data sets on the hub that the run began with."""

_NAME = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w.-]+)(@(?P<revision>[^\s@][^\s]*))?")
_commits: ContextVar[dict[str, str] | None] = ContextVar("commits", default=None)
_records: ContextVar[tuple[Callable[[], None], ...]] = ContextVar("records", default=())


@dataclass(frozen=True)
class HubName:
    """A model on the hub.

    Args:
        repo: `organisation/name`.
        revision: branch, tag or commit; None: what the hub shows first (`main`).
    """

    repo: str
    revision: str | None = None


def hub_name(name: str) -> HubName | None:
    """`ORGANISATION/NAME` or `ORGANISATION/NAME@REVISION` in its parts; None for anything else."""
    match = _NAME.fullmatch(name)
    return HubName(match["repo"], match["revision"]) if match else None


@contextmanager
def pinning(known: Mapping[str, str]) -> Iterator[None]:
    """While the block runs, a name stands for one commit, even if its branch moves meanwhile.

    Args:
        known: names with the commits that they are to stand for.
    """
    token = _commits.set(dict(known))
    try:
        yield
    finally:
        _commits.reset(token)


@contextmanager
def recording(record: Callable[[], None]) -> Iterator[None]:
    """Call `record` whenever a name is remembered while the block runs, and those of the blocks around it."""
    token = _records.set((*_records.get(), record))
    try:
        yield
    finally:
        _records.reset(token)


def is_pinning() -> bool:
    """Whether names stand for one commit now."""
    return _commits.get() is not None


def commits() -> dict[str, str]:
    """The commits of the names that were opened while this command runs."""
    return dict(_commits.get() or {})


def remember(name: str, commit: str) -> None:
    """Have a name stand for a commit until the command ends."""
    known = _commits.get()
    if known is not None and known.get(name) != commit:
        known[name] = commit
        for record in _records.get():
            record()


def pinned(name: str) -> str:
    """`ORGANISATION/NAME@COMMIT` of a name that was opened while this command runs, any other name as it is."""
    commit, parts = commits().get(name), hub_name(name)
    return f"{parts.repo}@{commit}" if commit and parts else name
