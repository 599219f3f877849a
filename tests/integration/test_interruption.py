"""SIGKILL at random moments, then --resume: the same journal, the same best architecture, the same Φ."""

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from run_journals import journal

from tracenas.cli import invoke
from tracenas.demo import calibration_path, model_path
from tracenas.rundir import temporary_prefix

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]

SEARCH = ["search", str(model_path()), "--data", str(calibration_path()), "--params", "60%", "--threads", "1"]
SEARCH += [
    "--samples",
    "4",
    "--seq-len",
    "64",
    "--population",
    "8",
    "--elites",
    "3",
    "--iterations",
    "5",
]


def in_child(argv: list[str], kill_after: float | None) -> int | None:
    """Run a command line in a forked process; its exit status, None if it was killed."""
    child = os.fork()
    if child == 0:
        os._exit(invoke(argv))
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return None if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)


@pytest.mark.slow
def test_killed_and_resumed_equals_undisturbed(tmp_path: Path) -> None:
    import tracenas.models.checkpoints.loading
    import tracenas.scoring.evaluator  # noqa: F401  (imported here so that the children spend their time searching)

    calm, killed = tmp_path / "calm", tmp_path / "killed"
    started = time.perf_counter()
    assert in_child([*SEARCH, "--out", str(calm)], None) == 0
    whole = time.perf_counter() - started
    rng = np.random.default_rng()
    moments = [*(0.9 * whole * np.sort(rng.random(4))), 0.3 * whole, 0.4 * whole]
    stopped = 0
    for moment in moments:
        stopped += in_child([*SEARCH, "--out", str(killed), "--resume"], float(moment)) is None
    assert stopped >= 1, "no search was interrupted"
    assert in_child([*SEARCH, "--out", str(killed), "--resume"], None) == 0
    assert journal(killed) == journal(calm)
    best = [json.loads((run / "best.json").read_text()) for run in (calm, killed)]
    assert best[0]["architecture"] == best[1]["architecture"]
    assert best[0]["score"] == best[1]["score"]
    assert not [p.name for p in killed.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("begun", [False, True])
def test_what_was_being_written_when_killed_is_swept(begun: bool, tmp_path: Path) -> None:
    out = tmp_path / "run"
    if begun:
        assert in_child([*SEARCH, "--out", str(out)], None) == 0
    out.mkdir(exist_ok=True)
    for name in ("base.json", "journal.jsonl", "report.html"):
        (out / f"{temporary_prefix(out / name)}abc").touch()
    assert in_child([*SEARCH, "--out", str(out), "--resume"], None) == 0
    assert not [p.name for p in out.iterdir() if p.name.startswith(".")]
