"""`tracenas watch` over loopback: the page follows the run's files, and nothing else is served."""

import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from report_run import make_run

from tracenas.commands.watch import ReportServer
from tracenas.errors import UserError


@contextmanager
def serving(run: Path) -> Iterator[str]:
    with ReportServer(run, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def read(address: str) -> str:
    with urllib.request.urlopen(address, timeout=20) as answer:
        text: str = answer.read().decode()
        return text


def test_the_page_follows_the_journal(tmp_path: Path) -> None:
    """A run without a result yet: its page says so, and has every candidate that the journal has by then."""
    run = make_run(tmp_path / "run", layers=3, iterations=2, failing=0)
    lines = (run / "journal.jsonl").read_text().splitlines(keepends=True)
    for name in ("best.json", "summary.json"):
        (run / name).unlink()
    (run / "journal.jsonl").write_text("".join(lines[:30]))
    files = set(run.iterdir())
    with serving(run) as address:
        first, state = read(address), read(address + "state")
        assert "Search not finished: what the journal holds so far" in first and "30 candidates over" in first
        assert f'if (state !== "{state}") location.reload();' in first and "connect-src 'self'" in first
        assert read(address) == first
        with (run / "journal.jsonl").open("a") as journal:
            journal.writelines(lines[30:])
        assert read(address + "state") != state
        assert "50 candidates over" in read(address)
        (run / "best.json").write_text('{"architecture": ')
        assert "50 candidates over" in read(address), "a file that is just being written leaves the page as it was"
        with pytest.raises(urllib.error.HTTPError, match="404"):
            read(address + "journal.jsonl")
        with pytest.raises(urllib.error.HTTPError, match="403"):  # a page of another site, by a name of its own
            urllib.request.urlopen(urllib.request.Request(address, headers={"Host": "evil.example"}), timeout=20)
    assert set(run.iterdir()) == files | {run / "best.json"}


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("kind: search\nmodel: org/name\n")
    with serving(tmp_path) as address:
        assert "Search not finished" in read(address)


def test_no_run_and_a_port_in_use(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run directory"):
        ReportServer(tmp_path, 0)
    run = make_run(tmp_path / "run", layers=3, iterations=1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} of 127.0.0.1: .*accepted: a free one") as told:
            ReportServer(run, port)
    assert "\n" not in str(told.value)


@pytest.mark.slow
def test_ctrl_c_ends_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", layers=3, iterations=1)
    command = [sys.executable, "-m", "tracenas", "watch", str(run), "--port", "0"]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TRACENAS_LOG": "info"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # what runs in the background ignores it
    )
    assert process.stderr is not None
    said = next(line for line in process.stderr if "http://" in line)
    address = said.split(" at ")[1].split()[0]
    assert "Φ per generation" in read(address)
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=30)
    assert (process.returncode, rest, errors) == (0, "", "")
