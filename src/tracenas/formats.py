"""Numbers as people read them: 1.24M parameters, 3 min 20 s, 61.3 %; and amounts of memory as they write them."""

import math
import re

__all__ = [
    "BYTES",
    "MINUS",
    "MISSING",
    "counted",
    "data_size",
    "decimal",
    "duration",
    "fixed",
    "grouped",
    "parse_bytes",
    "percent",
    "perplexity",
    "plural",
    "short_count",
    "signed_percent",
]

MINUS = "\N{MINUS SIGN}"
MISSING = "\N{EN DASH}"
BYTES = {
    **{"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12},
    **{"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40},
}
"""Units of memory, in lower case."""
_AMOUNT = re.compile(r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*([kmgt]i?b)", re.IGNORECASE)


def short_count(value: float | None) -> str:
    """A number of parameters with three significant digits: 987, 12.3K, 1.24M, 6.74B."""
    if value is None:
        return MISSING
    for limit, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= limit * 0.9995:
            scaled = value / limit
            return f"{scaled:.{max(0, 2 - int(math.log10(max(abs(scaled), 1))))}f}{suffix}"
    return f"{value:.0f}"


def grouped(value: int | None) -> str:
    """A whole number with its thousands separated."""
    return MISSING if value is None else f"{value:,}"


def counted(value: float | None) -> str:
    """What a budget counts: a whole number with its thousands separated, or one of three decimals."""
    return MISSING if value is None else f"{value:,.0f}" if value == round(value) else f"{value:,.3f}"


def decimal(value: float | None, digits: int = 4) -> str:
    """A number with `digits` significant digits, thousands separated, trailing zeros kept; – for none."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return f"{0:.{digits - 1}f}"
    magnitude = math.floor(math.log10(abs(value)))
    if magnitude < -4 or magnitude >= 9:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        text = f"{mantissa}e{int(exponent)}"
    else:
        text = f"{value:,.{max(0, digits - 1 - magnitude)}f}"
    return text.replace("-", MINUS)


def fixed(value: float | None, digits: int = 2) -> str:
    """A number with `digits` decimals."""
    return MISSING if value is None else f"{value:.{digits}f}".replace("-", MINUS)


def perplexity(loss: float | None) -> str:
    """exp of a loss in nats per token."""
    return MISSING if loss is None else decimal(math.exp(min(loss, 700)))


def percent(ratio: float | None, digits: int = 1) -> str:
    """A ratio as 61.3 %."""
    return MISSING if ratio is None else f"{100 * ratio:.{digits}f}\N{NARROW NO-BREAK SPACE}%".replace("-", MINUS)


def signed_percent(ratio: float, digits: int = 1) -> str:
    """A change with its sign: +3.2 %, −0.8 %."""
    text = percent(ratio, digits)
    return text if text.startswith(MINUS) else f"+{text}"


def duration(seconds: float | None) -> str:
    """Seconds as 0.42 s, 12 s, 3 min 20 s, 2 h 05 min."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 10:
        return f"{seconds:.2g} s"
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60:02d} s"
    return f"{total // 3600} h {total % 3600 // 60:02d} min"


def data_size(size: float | None) -> str:
    """Bytes in binary units: 512 KiB, 1.5 GiB."""
    if size is None:
        return MISSING
    for limit, suffix in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= limit:
            return f"{size / limit:.3g} {suffix}" if size < 1000 * limit else f"{size / limit:,.0f} {suffix}"
    return f"{size:.0f} B"


def parse_bytes(text: str) -> int | None:
    """`700MB` or `3.5GiB` (powers of 1,000 and of 1,024) as a number of bytes; None if it is no such amount."""
    match = _AMOUNT.fullmatch(text.strip())
    return None if match is None else int(float(match[1]) * BYTES[match[2].lower()])


def plural(number: int, noun: str, several: str | None = None) -> str:
    """`1 candidate`, `1,010 candidates`."""
    return f"{number:,} {noun if number == 1 else several or noun + 's'}"
