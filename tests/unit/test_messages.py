"""What is told on stderr: levels, `-v`, `-q` and TRACENAS_LOG, and what Python users get."""

import logging
from pathlib import Path

import pytest

from tracenas.cli import invoke
from tracenas.demo import model_path
from tracenas.error_log import error_log, log_trace
from tracenas.errors import UserError
from tracenas.messages import LEVEL, chosen_level, inherited, on_stderr

LOG = logging.getLogger("tracenas")


def told(capsys: pytest.CaptureFixture[str], level: int) -> list[str]:
    with on_stderr(level):
        for name in ("debug", "info", "warning", "error"):
            getattr(LOG, name)("%s", name)
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


def test_records_are_shown_from_their_level_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, logging.DEBUG) == ["debug", "info", "warning: warning", "error"]
    assert told(capsys, logging.INFO) == ["info", "warning: warning", "error"]
    assert told(capsys, logging.ERROR) == ["error"]
    LOG.warning("after the command")
    assert capsys.readouterr().err == "" and LOG.level == logging.NOTSET


def test_levels_of_flags_and_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LEVEL, raising=False)
    assert chosen_level(verbose=False, quiet=False) == logging.INFO
    monkeypatch.setenv(LEVEL, "Warning")
    assert chosen_level(verbose=False, quiet=False) == logging.WARNING
    assert chosen_level(verbose=True, quiet=False) == logging.DEBUG
    assert chosen_level(verbose=False, quiet=True) == logging.ERROR
    with pytest.raises(UserError, match="--verbose and --quiet"):
        chosen_level(verbose=True, quiet=True)


def test_tracebacks_go_to_the_file_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with on_stderr(logging.DEBUG), error_log(tmp_path / "error.log"):
        log_trace("Traceback: a candidate")
    assert "a candidate" in (tmp_path / "error.log").read_text()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("flags", [(["-q"], []), ([], ["-q"]), (["--quiet"], []), ([], ["-v"]), (["-v"], [])])
def test_commands_take_the_flags_before_and_behind_their_name(
    flags: tuple[list[str], list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def planned(settings: object) -> object:
        LOG.debug("debug")
        LOG.warning("warning")
        raise UserError("no")

    monkeypatch.setattr("tracenas.commands.plan.command.plan", planned)
    before, behind = flags
    assert invoke([*before, "plan", str(model_path()), *behind]) == 2
    quiet = any("q" in flag for flag in (*before, *behind))
    expected = [] if quiet else ["debug", "warning: warning"]
    told = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("start torch")]
    assert told == [*expected, "tracenas: no"]


def test_a_wrong_level_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(LEVEL, "loud")
    assert invoke(["plan", str(model_path())]) == 2
    expected = "tracenas: TRACENAS_LOG 'loud': no such level; accepted: debug, info, warning, error\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(("level", "name"), [(10, "debug"), (15, "info"), (30, "warning"), (50, "error")])
def test_other_processes_show_what_this_one_shows(level: int, name: str) -> None:
    with on_stderr(level):
        assert inherited()[LEVEL] == name
