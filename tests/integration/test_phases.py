"""Commands show their phases on standard error, and nothing but results on standard output."""

import json
import os
import pty
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tracenas.cli import invoke
from tracenas.demo import heldout_path, model_path
from tracenas.reporting import progress


def prune(out: Path) -> list[str]:
    options = ["--samples", "2", "--seq-len", "16", "--params", "90%", "--method", "wanda", "--compensate", "none"]
    return ["prune", str(model_path()), "--data", str(heldout_path()), "--out", str(out), *options, "--json"]


PHASES = ("load model", "read text", "saliency wanda", "write the checkpoint", "verify the checkpoint")


def test_a_command_without_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Lines on standard error, with -q none; on standard output the result alone."""
    monkeypatch.setattr(progress, "BRIEF_SECONDS", 0.0)
    monkeypatch.setenv("TRACENAS_LOG", "info")
    assert invoke(prune(tmp_path / "a")) == 0
    out, lines = capfd.readouterr()
    assert json.loads(out)["params"] and out.count("\n") == 1 and "\x1b" not in lines
    for name in PHASES:
        assert re.search(rf"^{name}: .*\d", lines, re.MULTILINE), lines
    assert invoke([*prune(tmp_path / "b"), "-q"]) == 0
    out, lines = capfd.readouterr()
    assert json.loads(out)["params"] and not lines


def test_a_command_on_a_terminal(tmp_path: Path) -> None:
    """Bars on standard error; on standard output the result alone."""
    here, there = pty.openpty()
    command, environment = [sys.executable, "-m", "tracenas", *prune(tmp_path / "a")], {**os.environ, "TERM": "xterm"}
    error = bytearray()
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=there, env=environment) as process,
        suppress(OSError),  # the end of a terminal
    ):
        os.close(there)
        while chunk := os.read(here, 1 << 16):
            error += chunk
    os.close(here)
    bars = error.decode()
    assert process.returncode == 0 and process.stdout is not None, bars
    assert all(name in bars for name in PHASES) and "\x1b[" in bars
