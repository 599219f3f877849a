"""A Ray cluster of one node for tests: a head of its own, in a directory of its own, ended with the test."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

NEEDS_RAY = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install ray")
"""It is not imported for that: what it reads from the environment it reads then."""


@contextmanager
def ray_head(cores: int) -> Iterator[str]:
    """Its address."""
    with TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as directory:
        argv = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--port=0"]
        argv += [f"--num-cpus={cores}", "--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={directory}"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        process = subprocess.Popen(argv, env=environment, **quiet)  # type: ignore[call-overload]
        note = Path(directory) / "ray_current_cluster"
        while process.poll() is None and not (note.is_file() and note.read_text().strip()):
            time.sleep(0.1)
        try:
            assert process.poll() is None, "ray start has ended"
            yield note.read_text().strip()
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
