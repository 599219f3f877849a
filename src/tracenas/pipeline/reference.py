"""The pool of architectures that a combination's ranks are taken in, in a search's run directory."""

from pathlib import Path
from typing import Any

import numpy as np

from tracenas.errors import UserError
from tracenas.journal import Journal
from tracenas.proxies.combination import Choice
from tracenas.space.architecture import Architecture
from tracenas.space.search_space import SearchSpace

__all__ = ["POOL", "REFERENCE", "reference_pool", "stored_pool"]

REFERENCE = "reference.jsonl"
"""In a run directory: the pool, one architecture per line."""

POOL = 32
"""Random architectures of the pool, beside the uniform one."""

_STREAM = 0x52414E4B


def reference_pool(space: SearchSpace, seed: int) -> list[Architecture]:
    """The uniform architecture and `POOL` random ones of the budget, the same for the same seed.

    Fewer in a space that has not so many.
    """
    uniform = space.uniform()
    pool = [] if uniform is None else [uniform]
    rng = np.random.default_rng([seed, _STREAM])
    random: list[Architecture] = []
    for _ in range(20 * POOL):
        drawn = space.sample(rng) if len(random) < POOL else None
        if drawn is not None and drawn not in pool and drawn not in random:
            random.append(drawn)
    return pool + random


def stored_pool(path: Path, choice: Choice) -> list[dict[str, Any]]:
    """The pool that a search left.

    Raises:
        UserError: if it left none, or one of other proxies.
    """
    records = Journal(path).read()
    if not records:
        raise UserError(
            f"proxy '{choice.text}': ranks are relative to a search's reference pool, and there is no {path}; "
            "give the best.json of a search by this combination"
        )
    for line, record in enumerate(records, start=1):
        if missing := sorted(set(choice.weights) - set(record.get("values", ()))):
            raise UserError(f"{path}: line {line}: no value of '{missing[0]}': of a search by another combination")
    return records
