"""Command lines in tests: what they print, and in which line they are refused."""

import json
from typing import Any

import pytest

from tracenas.cli import invoke

__all__ = ["printed", "refused", "refused_at_last"]


def printed(capsys: pytest.CaptureFixture[str], argv: list[str]) -> dict[str, Any]:
    """What `--json` says."""
    capsys.readouterr()
    assert invoke([*argv, "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def refused(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    """The one line of a refusal, exit status 2."""
    capsys.readouterr()
    assert invoke(argv) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("tracenas: ")
    return str(line)


def refused_at_last(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    """The line of a refusal behind those of what was done until then."""
    capsys.readouterr()
    assert invoke(argv) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("tracenas: ")
    return str(line)
