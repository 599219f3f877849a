"""The recipes for clusters: their files are whole, and their command lines are accepted."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from documented import ROOT

from tracenas import cli, commands

RECIPES = ROOT / "recipes" / "cluster"


def command_lines() -> dict[str, str]:
    """By file, without `tracenas`."""
    job = yaml.safe_load((RECIPES / "kuberay.yaml").read_text(encoding="utf-8"))
    script = re.sub(r"\\\n\s*", " ", (RECIPES / "search.slurm").read_text(encoding="utf-8"))
    (line,) = re.findall(r"--\s+tracenas (search .*)", script)
    values = {"MODEL": "model", "TEXT": "text.txt", "PARAMS": "75%", "OUT": "run", "ADDRESS": "10.0.0.1:6379"}
    line = line.replace('"${RESUME[@]}"', "--resume")
    return {
        "kuberay.yaml": job["spec"]["entrypoint"].removeprefix("tracenas "),
        "search.slurm": re.sub(r"\$([A-Z]+)", lambda found: values[found[1]], line),
    }


@pytest.mark.parametrize("name", ["kuberay.yaml", "search.slurm"])
def test_the_command_line_of_a_recipe_is_accepted(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []

    class Stage:
        def search(self, settings: Any) -> Any:
            called.append(settings)
            return type("Outcome", (), {"show": lambda self: None})()

    monkeypatch.setattr(commands, "import_module", lambda _: Stage())
    monkeypatch.chdir(tmp_path)
    assert cli.invoke(shlex.split(command_lines()[name])) == 0
    assert called[0].ray in ("auto", "10.0.0.1:6379") and called[0].workers == "auto" and called[0].threads == 4


def test_the_script_is_one_that_bash_reads() -> None:
    subprocess.run(["bash", "-n", RECIPES / "search.slurm"], check=True)


def test_ray_is_of_the_version_that_is_tested() -> None:
    job = yaml.safe_load((RECIPES / "kuberay.yaml").read_text(encoding="utf-8"))
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert pinned is not None and job["spec"]["rayClusterSpec"]["rayVersion"] == pinned[1]
