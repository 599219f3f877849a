"""What a candidate may cost. Constraints add up over sub-blocks, so repair can move one unit at a time."""

import re
from dataclasses import dataclass

from tracenas.errors import UserError
from tracenas.space.costs import Cost

__all__ = ["Budget", "parse_count", "parse_size"]

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+)\s*([kKmMbBgG%]?)")
_SCALE = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9}


@dataclass(frozen=True)
class Budget:
    """C of TraceNAS §3.1 and the window below it: a candidate costs between `lower` and `limit`.

    Args:
        limit: the largest cost allowed.
        tolerance: relative depth of the window; it is widened to the smallest single move by the space.
        cost: what is counted; None: all parameters.
    """

    limit: int
    tolerance: float = 0.01
    cost: Cost | None = None


def parse_count(text: str) -> int | None:
    """`2.7B`, `350M`, `120k` or a plain count (`2,700,000`) as a number; None if it is none of these."""
    match = _SIZE.fullmatch(text.strip())
    if match is None or match[2] == "%":
        return None
    return int(float(match[1].replace(",", "")) * _SCALE[match[2].lower()] + 1e-6)


def parse_size(text: str | float, base: int) -> int:
    """`60%` (of `base`), `2.7B`, `350M`, `120k` or a plain count (`2,700,000`), as a number of parameters.

    Raises:
        UserError: if it is none of these, is not positive, is no number of parameters that a model has (0.6, 60: what
            may be meant is named), or exceeds the base.
    """
    plain = str(text).strip()
    match = _SIZE.fullmatch(plain)
    if match is None:
        comma = plain.replace(",", ".", 1)
        meant = f"; did you mean {comma}?" if "," in plain and _SIZE.fullmatch(comma) else ""
        raise UserError(
            f"params '{text}': expected a share such as 60%, a size such as 2.7B or 350M, or a count{meant}"
        )
    number, suffix = float(match[1].replace(",", "")), match[2].lower()
    if not suffix and 0 < number <= 100:
        raise UserError(f"params '{text}': no model has so few parameters; did you mean {_meant(number, base)}?")
    size = int(base * number / 100 + 1e-6) if suffix == "%" else int(number * _SCALE[suffix] + 1e-6)
    if size <= 0:
        raise UserError(f"params '{text}': must be more than 0")
    if size > base:
        raise UserError(f"params '{text}' is more than the base model's {base:,}; accepted: up to 100%")
    return size


def _meant(number: float, base: int) -> str:
    """What a number without a unit may stand for: a fraction, a percentage, a size that the base has room for."""
    if number < 1:
        return f"{100 * number:g}%"
    sizes = [f"{number:g}{unit}" for unit in "BMk" if number * _SCALE[unit.lower()] <= base]
    return " or ".join([f"{number:g}%", *sizes[:1]])
