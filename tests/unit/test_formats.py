"""Numbers as people read them, and tables as Markdown."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from tracenas.formats import (
    counted,
    data_size,
    decimal,
    duration,
    fixed,
    grouped,
    percent,
    plural,
    short_count,
    signed_percent,
)
from tracenas.tables import Table


@pytest.mark.parametrize(
    ("write", "texts"),
    [
        (
            short_count,
            {None: "–", 0: "0", 987: "987", 999.6: "1.00K", 12_345: "12.3K", 1_240_000: "1.24M", 6.74e9: "6.74B"},
        ),
        (counted, {None: "–", 1234: "1,234", 1234.5678: "1,234.568"}),
        (grouped, {None: "–", 0: "0", 1_234_567: "1,234,567"}),
        (decimal, {None: "–", math.inf: "–", 0: "0.000", 12_345.6: "12,346", -0.5: "−0.5000", 1e-5: "1.000e−5"}),
        (fixed, {None: "–", -1: "−1.00", 0.125: "0.12", 1234.5: "1234.50"}),
        (percent, {None: "–", 0.5: "50.0 %", -0.0125: "−1.2 %"}),
        (signed_percent, {0.5: "+50.0 %", -0.5: "−50.0 %"}),
        (duration, {None: "–", math.nan: "–", 5.25: "5.2 s", 59.4: "59 s", 605: "10 min 05 s", 7260: "2 h 01 min"}),
        (
            data_size,
            {None: "–", 512: "512 B", 2048: "2 KiB", 5 << 20: "5 MiB", 3 << 29: "1.5 GiB", 2000 << 30: "2,000 GiB"},
        ),
    ],
)
def test_numbers_are_written_as_people_read_them(write: Callable[[Any], str], texts: dict[Any, str]) -> None:
    written = {value: write(value).replace("\N{NARROW NO-BREAK SPACE}", " ") for value in texts}
    assert written == texts


def test_nouns_follow_their_number() -> None:
    assert [plural(n, "proxy", "proxies") for n in (0, 1, 1010)] == ["0 proxies", "1 proxy", "1,010 proxies"]
    assert plural(2, "layer") == "2 layers"


def test_a_table_is_written_as_markdown() -> None:
    table = Table("t", ["name", "a", "b"], [("x|y", "1", "2")])
    assert table.markdown() == "| name | a | b |\n|---|---:|---:|\n| x/y | 1 | 2 |"
