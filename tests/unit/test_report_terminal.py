"""The terminal's tables of a run, and numbers as people read them."""

import io
from pathlib import Path

import pytest
from report_run import make_run
from rich.console import Console

from tracenas.report import RunData
from tracenas.report.formats import count, decimal, duration, percent
from tracenas.report.svg import tick_label, ticks
from tracenas.report.terminal import print_run, sparkline
from tracenas.space.architecture import Architecture


def test_terminal_tables_in_plain_text(tmp_path: Path) -> None:
    out = io.StringIO()
    print_run(RunData.read(make_run(tmp_path / "run[red]", layers=6, iterations=3)), Console(file=out, width=40))
    text = out.getvalue().replace("\N{NARROW NO-BREAK SPACE}", " ")
    assert "\x1b" not in text and "─" not in text
    for expected in ("84.31", "216.6 ± 69.3", "found (best)", "134,515,008 to 80,655,552 (60.0 %)"):
        assert expected in text
    assert "against 118.4 for uniform (−28.8 %) and 216.6 ± 69.3 for 5 random ones" in text  # not wrapped


def test_terminal_tables_without_unicode_and_with_markup_in_names(tmp_path: Path) -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    run = RunData.read(make_run(tmp_path / "run", layers=4, iterations=2, model="a[/red][b]"))
    print_run(run, Console(file=out))
    out.flush()
    text = raw.getvalue().decode("ascii")
    assert "a[/red][b]" in text and "216.6 +- 69.3" in text
    coloured = io.StringIO()
    print_run(run, Console(file=coloured, force_terminal=True, width=100))
    assert "a[/red][b]" in coloured.getvalue() and "\x1b[" in coloured.getvalue()


def test_sparkline() -> None:
    layers = [{"heads": 8}, {"skip": True}, {"heads": 1}, {"heads": 4}]
    architecture = Architecture.from_json({"layers": layers})
    assert sparkline(architecture, "heads", (8, 8, 8, 8)) == "█·▁▄"
    assert sparkline(architecture, "heads", (8, 8, 8, 8), ascii_only=True) == "9-15"


def test_numbers_and_ticks() -> None:
    assert [count(n) for n in (987, 12_345, 999_999, 1_240_000, 134_515_008, 6_740_000_000)] == [
        "987",
        "12.3K",
        "1.00M",
        "1.24M",
        "135M",
        "6.74B",
    ]
    assert [decimal(v) for v in (0.0, 1234.5, -0.01234, 12.3456, 1.5e12, None)] == [
        "0.000",
        "1,234",
        "−0.01234",
        "12.35",
        "1.500e12",
        "–",
    ]
    assert [duration(s) for s in (0.4213, 59.6, 200, 7500)] == [
        "0.42 s",
        "1 min 00 s",
        "3 min 20 s",
        "2 h 05 min",
    ]
    assert percent(-0.5, 0).startswith("−50")
    assert ticks(0, 1, 5) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(0, 3, 6, whole=True) == [0, 1, 2, 3]
    assert [tick_label(v, [2.5, 5.0]) for v in (2.5, 5.0)] == ["2.5", "5.0"]
