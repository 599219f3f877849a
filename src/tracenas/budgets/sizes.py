"""Values of budgets as they are given: a share of the base, or an absolute value with its unit."""

import re

from tracenas.budgets.kind import Kind
from tracenas.errors import UserError
from tracenas.formats import BYTES
from tracenas.space.constraints import parse_size

__all__ = ["parse_limit"]

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+)\s*([a-z%]*)", re.IGNORECASE)
_COUNTS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
_TIMES = {"": 10**6, "ms": 10**6, "us": 10**3, "s": 10**9}
_BYTES = {"": 1, "b": 1, **BYTES}


def parse_limit(name: str, kind: Kind, text: str, base: int) -> int:
    """The limit, in what the budget counts.

    Args:
        base: what the base costs.

    Raises:
        UserError: if it is none, is not positive, or exceeds the base.
    """
    if name == "params":
        return parse_size(text, base)
    units = _BYTES if kind.bytes else _TIMES if kind.milliseconds else _COUNTS
    match = _SIZE.fullmatch(text.strip())
    unit = "" if match is None else match[2].lower()
    if match is None or (unit != "%" and unit not in units):
        raise UserError(f"budget {name} '{text}': expected a share such as 60%, or {_absolute(kind)}")
    number = float(match[1].replace(",", ""))
    if not unit and 0 < number <= 100 and not kind.milliseconds:
        raise UserError(f"budget {name} '{text}': no model costs so little; did you mean {_share(number)}?")
    limit = int(base * number / 100 + 1e-6) if unit == "%" else int(number * units[unit] + 1e-6)
    if limit <= 0:
        raise UserError(f"budget {name} '{text}': must be more than 0")
    if limit > base:
        there = f"{base / _TIMES['ms']:,.3f} ms" if kind.milliseconds else f"{base:,}"
        raise UserError(f"budget {name} '{text}' is more than the base model's {there}; accepted: up to 100%")
    return limit


def _absolute(kind: Kind) -> str:
    if kind.bytes:
        return "a size such as 400MB or 6GiB"
    return "a time such as 12.5ms" if kind.milliseconds else "a number such as 2.7B or 350M"


def _share(number: float) -> str:
    return f"{100 * number:g}%" if number < 1 else f"{number:g}%"
