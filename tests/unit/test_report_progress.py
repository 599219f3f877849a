"""Progress displays: plain lines where there is no terminal, a live line where there is one."""

import io
import re
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from tracenas.reporting import progress
from tracenas.reporting.notebook import CellOutput
from tracenas.reporting.progress import Rate, SearchProgress, phase


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level("INFO", "tracenas")
    return caplog


def plain(told: pytest.LogCaptureFixture) -> list[str]:
    return [message.replace("\N{NARROW NO-BREAK SPACE}", " ") for message in told.messages]


def terminal(out: io.StringIO) -> Console:
    return Console(file=out, force_terminal=True, width=140, _environ={"TERM": "xterm-256color"})


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


def test_reports_that_come_at_once_are_one() -> None:
    """Twelve candidates that were measured together say nothing of the speed; twelve more, ten seconds later, do."""
    clock = Clock()
    rate = Rate(clock)
    for generation in range(2):
        for place in range(12):
            rate.add(12 * generation + place + 1)
            clock.now += 0.001
        if not generation:
            assert rate.per_second is None
            clock.now += 10
    assert rate.per_second == pytest.approx(1.2, rel=0.01)


def test_one_plain_line_per_generation(told: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    with SearchProgress(3, budget=600_000, base_params=1_000_000, clock=clock) as progress:
        evaluated = 0
        for generation in range(3):
            for _ in range(4):
                evaluated += 1
                clock.now += 2
                best = None if evaluated == 1 else float(evaluated)
                progress.update(generation, evaluated, 12, best, 598_000, generation)
    lines = plain(told)
    assert len(lines) == 3
    assert lines[0] == "Generation 1/3: 4/12 evaluations, best Φ 4.000, 598K of 600K (59.8 %), 0.50/s, ETA 16 s"
    assert lines[1].startswith("Generation 2/3: 8/12") and "1 duplicate" in lines[1]
    assert lines[2].startswith("Generation 3/3: 12/12") and "ETA" not in lines[2]


def test_a_long_generation_has_a_line_a_minute(told: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    with SearchProgress(1, clock=clock) as progress:
        for evaluated in range(1, 8):
            clock.now += 25
            progress.update(0, evaluated, 7, -1.0, None, 0)
    assert [line.split()[2] for line in plain(told)] == ["3/7", "6/7", "7/7"]


def test_an_interrupted_search_still_says_where_it_was(told: pytest.LogCaptureFixture) -> None:
    with pytest.raises(KeyboardInterrupt), SearchProgress(2, clock=Clock()) as progress:
        progress.update(0, 1, 8, None, None, 0)
        raise KeyboardInterrupt
    assert plain(told) == ["Generation 1/2: 1/8 evaluations, no score yet"]


def test_a_live_search_on_a_terminal(told: pytest.LogCaptureFixture) -> None:
    out = io.StringIO()
    with SearchProgress(2, label="score (loss)", console=terminal(out)) as progress:
        progress.update(1, 7, 8, -1.25, 1000, 0)
    text = out.getvalue()
    assert "Generation 2/2" in text and "7/8" in text and "score (loss) −1.250" in text and not told.messages


def test_phases_without_a_terminal_have_few_lines(told: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    with phase("Calibration [x]", 100, clock=clock) as steps:
        for _ in range(100):
            clock.now += 0.3
            steps.advance()
    lines = plain(told)
    assert lines[0] == "Calibration [x]: 17/100, ETA 25 s"
    assert lines[-1] == "Calibration [x]: 100/100 in 30 s"
    assert len(lines) <= 6


def test_what_was_done_before_says_nothing_of_the_speed(told: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    with phase("study", 100, done=80, clock=clock) as steps:
        clock.now += 10
        steps.report(90, 100)
    assert plain(told) == ["study: 90/100, ETA 10 s", "study: 90/100 in 10 s"]


def test_a_status_may_be_worth_a_line(told: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    with phase("recover", 4, clock=clock) as steps:
        steps.tell("perplexity 9", line=True)
        for loss in (3.0, 2.0):
            clock.now += 1
            steps.tell("not shown")
            steps.advance()
            steps.tell(f"loss {loss}", line=True)
    assert plain(told) == [
        "recover: 0/4, perplexity 9",
        "recover: 1/4, loss 3.0, ETA 3 s",
        "recover: 2/4, loss 2.0, ETA 2 s",
        "recover: 2/4, loss 2.0 in 2 s",
    ]


def test_phases_without_steps(told: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long one is told of while it runs, a short one at level debug alone, an interrupted one not at its end."""
    clock = Clock()
    with phase("load", clock=clock):
        clock.now += 3
    with phase("hold out text", clock=clock):
        clock.now += 0.9
    with pytest.raises(KeyboardInterrupt), phase("saliency", clock=clock):
        clock.now += 3
        raise KeyboardInterrupt
    assert plain(told) == ["load: 3 s"]
    told.clear()
    told.set_level("DEBUG", "tracenas")
    with phase("hold out text", clock=clock):
        clock.now += 0.9
    assert plain(told) == ["hold out text: 0.9 s"]
    told.clear()
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    with phase("base pass", clock=clock):
        while not told.messages:
            pass
    assert plain(told)[0] == "base pass …"


def test_steps_of_an_iterator(told: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    with phase("Reading", clock=clock) as steps:
        for _ in steps.over("abc"):
            clock.now += 1
    assert plain(told)[-1] == "Reading: 3 in 3 s"


def test_a_phase_on_a_terminal(told: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its steps and status; another one inside it has its own line; a brief one leaves nothing behind."""
    out = io.StringIO()
    console = terminal(out)
    with phase("brief", console=console):
        pass
    assert "brief" in out.getvalue() and out.getvalue().endswith("\x1b[2K")
    monkeypatch.setattr(progress, "BRIEF_SECONDS", 0.0)
    with phase("Perplexity [wiki]", 4, console=console) as steps:
        for _ in range(4):
            steps.advance()
        steps.tell("loss 2")
        with phase("load", console=console):
            pass
    text = out.getvalue()
    assert "Perplexity [wiki]" in text and "4/4" in text and "loss 2" in text and "load" in text and not told.messages
    assert not text.endswith("\x1b[2K")


def test_nothing_is_shown_when_errors_alone_are(told: pytest.LogCaptureFixture) -> None:
    told.set_level("ERROR", "tracenas")
    out, clock = io.StringIO(), Clock()
    with phase("load", 2, console=terminal(out), clock=clock) as steps, SearchProgress(1, console=terminal(out)):
        clock.now += 60
        steps.advance()
    assert not out.getvalue() and not told.messages


SCORE = ("--samples", "2", "--seq-len", "16", "--params", "90%", "--method", "wanda", "--compensate", "none")


def test_a_narrow_terminal_shows_steps_and_what_it_can_of_the_status() -> None:
    out, status = io.StringIO(), "loss 3.2143, validation perplexity 37.42, 12,345 tokens/s, learning rate 0.0001"
    console = Console(file=out, force_terminal=True, width=60, _environ={"TERM": "xterm-256color"})
    with phase("recover (pretrain)", 1200, done=600, console=console) as steps:
        steps.tell(status)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    assert "600/1,200" in text and "  loss 3.2143, validation perplexity 37.42, 12,345" in text and "0.0001" not in text


def test_a_notebook_shows_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    """All phases of a cell in one output: what goes on, and what took a second; IPython need not be installed here."""
    outputs: list[list[str]] = []

    class Handle:
        update = staticmethod(lambda html: outputs[-1].append(html))

    def displayed(html: str, *, display_id: bool) -> Handle:
        outputs.append([html])
        return Handle()

    shell, display = SimpleNamespace(execution_count=1), SimpleNamespace(HTML=str, display=displayed)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(display=display, get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr(progress, "_CELL", CellOutput())
    console = Console(file=(printed := io.StringIO()), force_jupyter=True)
    with phase("load", 2, console=console) as steps:
        steps.advance()
        with phase("read text", console=console):
            assert "load" in outputs[0][-1] and "1/2" in outputs[0][-1] and "read text" in outputs[0][-1]
        assert "load" in outputs[0][-1] and "read text" not in outputs[0][-1]
    assert len(outputs) == 1 and outputs[0][-1] == ""
    shell.execution_count = 2
    monkeypatch.setattr(progress, "BRIEF_SECONDS", 0)
    for name in ("long", "another"):
        with phase(name, console=console):
            pass
    assert len(outputs) == 2 and "long" in outputs[1][-1] and "another" in outputs[1][-1]
    assert not printed.getvalue()
