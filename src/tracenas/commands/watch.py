"""`tracenas watch`: a run's page on loopback, drawn again when the run has written something."""

import logging
import tempfile
import threading
import webbrowser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tracenas.commands.report import report
from tracenas.config import ReportConfig, WatchConfig
from tracenas.errors import UserError
from tracenas.rundir import REPORT

__all__ = ["ReportServer", "Watched", "watch"]

_log = logging.getLogger("tracenas")

_READ = (".json", ".jsonl", ".yaml", ".safetensors")
_RELOAD = """<script>setInterval(async () => {
  const state = await fetch("state").then((answer) => answer.text(), () => "%(state)s");
  if (state !== "%(state)s") location.reload();
}, 2000);</script></body>"""
"""In the served copy alone: the page asks every two seconds whether it is still current."""


class ReportServer(ThreadingHTTPServer):
    """The page of a run at `/`, and at `/state` what changes when a file of the run does; on 127.0.0.1 alone.

    Args:
        run: its directory; nothing is written in it.
        port: 0: any free one; `server_port` says which.

    Raises:
        UserError: if the directory holds no run with a page, or the port cannot be had.
    """

    daemon_threads = True

    def __init__(self, run: Path, port: int) -> None:
        self._run, self._state, self._page, self._lock = run, "", "", threading.Lock()
        self._draw()
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(f"port {port} of 127.0.0.1: {reason}; accepted: a free one, or --port 0 for any") from error

    def page(self) -> str:
        """The page as the run stands; the last one where a file is just being written."""
        with self._lock:
            if self.state() != self._state:
                try:
                    self._draw()
                except UserError as error:
                    _log.warning("%s; the page stays as it was", error)
            return self._page

    def state(self) -> str:
        """Name, size and time of what the page is drawn from, as one number."""
        files = sorted(path for path in self._run.rglob("*") if path.suffix in _READ)
        return format(hash(tuple((str(path), *_stamp(path)) for path in files)) & (2**64 - 1), "016x")

    def _draw(self) -> None:
        state = self.state()
        with tempfile.TemporaryDirectory() as folder:
            page = report(ReportConfig(run=self._run, out=Path(folder) / REPORT)).path.read_text("utf-8")
        page = page.replace("default-src 'none';", "default-src 'none'; connect-src 'self';", 1)
        head, _, tail = page.rpartition("</body>")
        self._page, self._state = head + _RELOAD % {"state": state} + tail, state


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:  # a temporary file that is gone
        return 0, 0
    return found.st_size, found.st_mtime_ns


class _Handler(BaseHTTPRequestHandler):
    server: ReportServer

    def do_GET(self) -> None:
        """Answer with the page, or its state; nothing else is served."""
        answers = {"/": ("text/html", self.server.page), "/state": ("text/plain", self.server.state)}
        port = self.server.server_port
        if self.headers.get("Host") not in (f"127.0.0.1:{port}", f"localhost:{port}"):  # a name that leads here
            self.send_error(403)
            return
        if self.path not in answers:
            self.send_error(404)
            return
        kind, answer = answers[self.path]
        body = answer().encode()
        self.send_response(200)
        for name, value in (("Content-Type", f"{kind}; charset=utf-8"), ("Content-Length", str(len(body)))):
            self.send_header(name, value)
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are told with `-v` alone."""
        _log.debug(format, *args)


class Watched:
    """Where the page was."""

    def __init__(self, address: str) -> None:
        self.address = address

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {"address": self.address}

    def show(self) -> None:
        """Nothing: the address was said when the page was there."""


def watch(config: WatchConfig) -> Watched:
    """Serve a run's page until Ctrl-C.

    Raises:
        UserError: if the directory holds no run with a page, or the port cannot be had.
    """
    with ReportServer(config.run, config.port) as server:
        address = f"http://127.0.0.1:{server.server_port}/"
        _log.info("%s at %s (Ctrl-C ends)", config.run, address)
        if config.open:
            webbrowser.open(address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return Watched(address)
    return Watched(address)
