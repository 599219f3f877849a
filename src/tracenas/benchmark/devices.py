"""What this machine computes with, by name, without torch."""

import platform
import shutil
import subprocess
from pathlib import Path

__all__ = ["graphics_processors", "processor"]


def processor() -> str:
    """The CPU as /proc/cpuinfo calls it, or its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.machine()


def graphics_processors() -> tuple[str, ...]:
    """The GPUs as their driver calls them; none where there is no driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    asked = [program, "--query-gpu=name", "--format=csv,noheader"]
    answer = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
    return tuple(line.strip() for line in answer.stdout.splitlines() if line.strip()) if not answer.returncode else ()
