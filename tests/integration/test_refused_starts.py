"""What is wrong with the text that a command is given leaves its directory as it was, and the next start succeeds."""

import json
from pathlib import Path
from typing import Any

import pytest
from recovery_toys import write_text
from tiny import save_tiny

from tracenas.cli import invoke

pytestmark = pytest.mark.integration

SMALL = ["samples=4", "seq_len=32", "threads=1", "device=cpu"]
SEARCH = ["params=60%", "population=4", "elites=2", "iterations=1"]
COMMANDS: dict[str, list[str]] = {
    "search": SEARCH,
    "run": [*SEARCH, "windows=4", "random_architectures=1", "text={held_out}"],
    "study": ["params=60%", "architectures=4", "steps=2", "text={held_out}", "windows=4", "proxies=loss"],
    "metric search": ["population=6", "elites=2", "iterations=1", "windows=4", "text={held_out}"],
    "sparsify": ["metric=wanda", "sparsity=0.5", "ratios=search", "population=4", "elites=2", "iterations=1"],
    "select-calibration": ["method=uniform", "params=60%", "candidates=2", "samples=2", "held_out={held_out}"],
    "recover": ["method=pretrain", "max_steps=2", "global_batch=2", "text={held_out}"],
}
BEYOND = {"recover": ["samples=4"], "sparsify": []}
"""Settings of SMALL that a command has not."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    home = tmp_path_factory.mktemp("refused")
    save_tiny(home / "model", "llama", tokenizer)
    write_text(home / "text.txt", 60)
    write_text(home / "held-out.txt", 30, seed=1)
    rows = [json.dumps({"text": text}) for text in (home / "text.txt").read_text().split("\n<|endoftext|>\n")]
    (home / "late.jsonl").write_text("\n".join([*rows, '{"text": null}']))
    (home / "field.jsonl").write_text('{"body": "x"}\n')
    (home / "short.txt").write_text("a")
    (home / "table.csv").write_text("id,body\n1,x\n")
    return home


def command(name: str, home: Path, out: Path, **changes: str) -> list[str]:
    held_out = changes.pop("held_out", "held-out.txt")
    more = [part.format(held_out=home / held_out) for part in COMMANDS[name]]
    small = [part for part in SMALL if part not in BEYOND.get(name, [])]
    values = {"data": str(home / changes.pop("data", "text.txt")), "out": str(out), **changes}
    return [*name.split(), str(home / "model"), *small, *more, *(f"{key}={value}" for key, value in values.items())]


def place(name: str, home: Path) -> Path:
    return home / "out.safetensors" if name == "select-calibration" else home / "out"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_start_that_is_refused_leaves_nothing(
    name: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = [{"data": file} for file in ("no-such.txt", "field.jsonl", "table.csv", "late.jsonl", "short.txt")]
    if any("{held_out}" in part for part in COMMANDS[name]):
        wrong += [{"held_out": file} for file in ("no-such.txt", "field.jsonl", "table.csv")]
    if name in ("study", "metric search"):
        wrong += [{"held_out": "late.jsonl", "windows": "9999"}]
    out = place(name, tmp_path)
    for changes in wrong:
        capsys.readouterr()
        assert invoke(command(name, home, out, **changes)) == 2, changes
        told = capsys.readouterr().err.strip().splitlines()[-1]
        assert (changes.get("data") or changes["held_out"]) in told, told
        left = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"]
        assert not left, (changes, left)
    assert invoke(command(name, home, out)) == 0
