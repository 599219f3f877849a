"""`scripts/gpu_check.sh` without a GPU: shrunk, which its files say, and with no package that it does not name."""

import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scripts_as_modules import SCRIPTS

pytestmark = pytest.mark.integration

BLOCKED = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("pydantic", "datasets", "lm_eval", "ray"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""


def check(tmp_path: Path, *parts: str) -> "subprocess.CompletedProcess[str]":
    (tmp_path / "absent").mkdir()
    (tmp_path / "absent" / "sitecustomize.py").write_text(BLOCKED)
    environment = {**os.environ, "OUT": str(tmp_path / "out"), "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = str(tmp_path / "absent")
    argv = [str(SCRIPTS / "gpu_check.sh"), *parts]
    return subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "parts",
    [("recovery", "latency", "candidate"), pytest.param(("parity", "search", "refit"), marks=pytest.mark.slow)],
)
def test_parts_write_what_they_found_at_once(tmp_path: Path, parts: tuple[str, ...]) -> None:
    done = check(tmp_path, *parts)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.stem for path in (tmp_path / "out").iterdir()} == set(parts)
    for part in parts:
        said: dict[str, Any] = json.loads((tmp_path / "out" / f"{part}.json").read_text(), parse_constant=pytest.fail)
        assert (said["part"], said["device"], said["shrunk"], said["ok"]) == (part, "cpu", True, True)
        assert said["checks"] and said["found"]


def test_an_unknown_part_is_refused(tmp_path: Path) -> None:
    done = check(tmp_path, "everything")
    assert done.returncode == 2 and "no part everything; accepted: parity, search" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_part_that_fails_says_so_and_the_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    main = importlib.import_module("gpu_check.__main__")
    machine = importlib.import_module("gpu_check.machine")

    def breaks(_: Any) -> Any:
        raise ValueError("as asked")

    monkeypatch.setattr(
        main,
        "PARTS",
        {
            "breaks": breaks,
            "exceeds": lambda _: ({}, [machine.at_most("too much", 2.0, 1.0)]),
            "undefined": lambda _: ({}, [machine.at_most("no number", math.nan, 1.0)]),
            "holds": lambda _: ({}, [machine.at_most("enough", 1.0, 1.0)]),
        },
    )
    monkeypatch.setenv("OUT", str(tmp_path))
    assert main.main([]) == 1
    found = {path.stem: json.loads(path.read_text())["ok"] for path in tmp_path.glob("*.json")}
    assert found == {"breaks": False, "exceeds": False, "undefined": False, "holds": True}
    assert "failed: ValueError: as asked" in capsys.readouterr().out
