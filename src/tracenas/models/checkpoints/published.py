"""Names that may stand in a checkpoint that leaves this machine: hub ids as they are, of paths the last part."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tracenas.hub.commits import pinned

__all__ = ["published", "published_facts"]

_SNAPSHOT = re.compile(r"models--([^/]+)--([^/]+)/snapshots(?:/([0-9a-f]{40})?|$)")
"""Of the hub's cache: owner, name and commit are in the path."""


def published(name: str) -> str:
    """A model, a file or a mixture of files (`a.jsonl=0.7,b.txt=0.3`) without the directories they are in.

    A model on the hub goes by its hub id and the commit that was opened while this command runs, one in the hub's cache
    likewise. What is no path is given back as it is.
    """
    if not name:
        return name
    if "," in name and not Path(name).exists():
        return ",".join(published(part) for part in name.split(","))
    head, weight = name, ""
    if not Path(name).exists() and (match := re.fullmatch(r"(.+)(=[\d.]+%?)", name)):
        head, weight = match[1], match[2]
    if match := _SNAPSHOT.search(head):
        commit = f"@{match[3]}" if match[3] else ""
        return f"{match[1]}/{match[2]}{commit}{weight}"
    if (address := pinned(head)) != head:
        return address + weight
    is_path = head.startswith((".", "/", "~")) or head.count("/") > 1 or Path(head).exists()
    return (Path(head).expanduser().absolute().name or head if is_path and "://" not in head else head) + weight


def published_facts(facts: Any) -> Any:
    """Settings and results with every text in them `published`."""
    if isinstance(facts, Mapping):
        return {key: published_facts(value) for key, value in facts.items()}
    if isinstance(facts, list | tuple):
        return [published_facts(value) for value in facts]
    return published(str(facts)) if isinstance(facts, str | Path) else facts
