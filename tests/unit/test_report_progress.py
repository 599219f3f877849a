"""Progress displays: plain lines where there is no terminal, a live line where there is one."""

import io

import pytest
from rich.console import Console

from tracenas.reporting.progress import Rate, SearchProgress, stage_progress


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def plain(out: io.StringIO) -> list[str]:
    return out.getvalue().replace("\N{NARROW NO-BREAK SPACE}", " ").splitlines()


def test_rate_does_not_count_what_was_there_before() -> None:
    clock = Clock()
    rate = Rate(clock)
    rate.add(500)
    assert rate.per_second is None and rate.remaining(600) is None
    clock.now += 10
    rate.add(520)
    assert rate.per_second == pytest.approx(2.0)
    assert rate.remaining(600) == pytest.approx(40.0)


def test_rate_follows_the_recent_speed() -> None:
    clock = Clock()
    rate = Rate(clock, window=2)
    for done, seconds in ((0, 0), (1, 10), (2, 1), (3, 1)):
        clock.now += seconds
        rate.add(done)
    assert rate.per_second == pytest.approx(1.0)


def test_one_plain_line_per_generation() -> None:
    out, clock = io.StringIO(), Clock()
    with SearchProgress(
        3, budget=600_000, base_params=1_000_000, console=Console(file=out, width=30), clock=clock
    ) as progress:
        evaluated = 0
        for generation in range(3):
            for _ in range(4):
                evaluated += 1
                clock.now += 2
                best = None if evaluated == 1 else float(evaluated)
                progress.update(generation, evaluated, 12, best, 598_000, generation)
        progress.finish()
    lines = plain(out)
    assert len(lines) == 4
    assert lines[0] == "Generation 1/3: 4/12 evaluations, best Φ 4.000, 598K of 600K (59.8 %), 0.50/s, ETA 16 s"
    assert lines[1].startswith("Generation 2/3: 8/12") and "1 duplicate" in lines[1]
    assert lines[2].startswith("Generation 3/3: 12/12") and "ETA" not in lines[2]
    assert lines[3] == "Search done: 12 evaluations in 24 s"


def test_an_interrupted_search_still_says_where_it_was() -> None:
    out = io.StringIO()
    with (
        pytest.raises(KeyboardInterrupt),
        SearchProgress(2, console=Console(file=out), clock=Clock()) as progress,
    ):
        progress.update(0, 1, 8, None, None, 0)
        raise KeyboardInterrupt
    assert plain(out) == ["Generation 1/2: 1/8 evaluations, no score yet"]


def test_a_live_search_on_a_terminal() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=140, _environ={"TERM": "xterm-256color"})
    with SearchProgress(2, label="score (loss)", console=console) as progress:
        progress.update(1, 7, 8, -1.25, 1000, 0)
        progress.finish("Stopped: best score −1.25")
    text = out.getvalue()
    assert "Generation 2/2" in text and "7/8" in text and "score (loss) −1.250" in text
    assert text.rstrip().endswith("Stopped: best score −1.25")


def test_an_ascii_terminal_survives() -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    with SearchProgress(1, console=Console(file=out)) as progress:
        progress.update(0, 1, 1, 2.0, None, 0)
    out.flush()
    assert b"1/1 evaluations" in raw.getvalue()


def test_stage_lines_are_few() -> None:
    out, clock = io.StringIO(), Clock()
    with stage_progress("Calibration [x]", 100, console=Console(file=out), clock=clock) as advance:
        for _ in range(100):
            clock.now += 0.3
            advance()
    lines = plain(out)
    assert lines[0] == "Calibration [x]: 17/100, ETA 25 s"
    assert lines[-1] == "Calibration [x]: 100/100 in 30 s"
    assert len(lines) <= 6


def test_stage_without_a_total_and_on_a_terminal() -> None:
    out = io.StringIO()
    with stage_progress("Reading", console=Console(file=out)) as advance:
        advance(3)
    assert plain(out)[-1].startswith("Reading: 3 in ")
    live = io.StringIO()
    console = Console(file=live, force_terminal=True, width=100, _environ={"TERM": "xterm-256color"})
    with stage_progress("Perplexity [wiki]", 4, console=console) as advance:
        for _ in range(4):
            advance()
    assert "Perplexity [wiki]" in live.getvalue() and "4/4" in live.getvalue()
