"""What a candidate may cost. Constraints add up over sub-blocks, so repair can move one unit at a time."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from tracenas.errors import UserError
from tracenas.space.sub_block import SubBlockSpec

__all__ = ["Budget", "parse_size"]

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kKmMbBgG%]?)")
_SCALE = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9}


@dataclass(frozen=True)
class Budget:
    """C of TraceNAS §3.1 and the window below it: a candidate costs between `lower` and `limit`.

    Args:
        limit: the largest cost allowed, in `unit`.
        tolerance: relative depth of the window; it is widened to the smallest single move by the space.
        sub_block_cost: additive cost of a sub-block at a width.
        unit: what is counted, for messages.
    """

    limit: int
    tolerance: float = 0.01
    sub_block_cost: Callable[[SubBlockSpec, int], int] = SubBlockSpec.parameters
    unit: str = "parameters"


def parse_size(text: str | float, base: int) -> int:
    """`60%` (of `base`), `2.7B`, `350M`, `120k` or a plain count, as a number of parameters.

    Raises:
        UserError: if it is none of these, is not positive, or exceeds the base.
    """
    match = _SIZE.fullmatch(str(text).strip())
    if match is None:
        raise UserError(f"params '{text}': expected a share such as 60%, a size such as 2.7B or 350M, or a count")
    number, suffix = float(match[1]), match[2].lower()
    size = int(base * number / 100 + 1e-6) if suffix == "%" else int(number * _SCALE[suffix] + 1e-6)
    if size <= 0:
        raise UserError(f"params '{text}': must be more than 0")
    if size > base:
        raise UserError(f"params '{text}' is more than the base model's {base:,}")
    return size
