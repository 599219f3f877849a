"""`tracenas run --front` by the command line on a tiny model: a table of checkpoints at chosen sizes."""

import json
from pathlib import Path
from typing import Any

import pytest
from command_lines import printed, refused
from tiny import save_tiny, save_words

from tracenas.journal import Journal

pytestmark = pytest.mark.integration

SETTINGS = ["--samples", "4", "--seq-len", "32", "--threads", "1", "--channel-quantum", "8", "--windows", "2"]
SMALL = ["--population", "8", "--elites", "2", "--iterations", "2", "--compensate", "auto"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A tiny model and a text."""
    home = tmp_path_factory.mktemp("run-front")
    save_tiny(home / "llama", "llama", tokenizer)
    save_words(home / "text.txt", 1500)
    return home


def run(home: Path, out: Path, *options: str) -> list[str]:
    text = str(home / "text.txt")
    data = ["--data", text, "--text", text, "--out", str(out)]
    return ["run", str(home / "llama"), *data, *SETTINGS, *SMALL, "--front", *options]


def test_every_size_is_the_best_of_the_front_there_and_further_ones_are_added(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    made = printed(capsys, run(home, out, "--checkpoints", "70%,85%"))
    base, *rows = made["checkpoints"]
    records = [r for r in Journal(out / "journal.jsonl").read() if r["score"] is not None and "stopped" not in r]
    assert base["size"] == "base" and [row["size"] for row in rows] == ["70%", "85%"]
    for share, row in zip((0.7, 0.85), rows, strict=True):
        fitting = [r for r in records if r["params"] <= int(share * base["params"])]
        assert row["score"] == max(r["score"] for r in fitting)
        assert row["params"] == row["costs"]["params"] <= int(share * base["params"])
        assert Path(row["path"]).is_dir() and row["perplexity"] > 0 and row["tokens"] == base["tokens"]
    assert json.loads((out / "summary.json").read_text())["checkpoints"] == made["checkpoints"]
    assert "<code>params-70/pruned</code>" in (out / "report.html").read_text()
    written = [(Path(row["path"]) / "model.safetensors").stat().st_mtime_ns for row in rows]
    again = printed(capsys, run(home, out, "--checkpoints", "70%,85%,80%", "--resume"))
    assert [row["size"] for row in again["checkpoints"]] == ["base", "70%", "85%", "80%"]
    assert again["checkpoints"][:3] == made["checkpoints"]
    assert [(Path(row["path"]) / "model.safetensors").stat().st_mtime_ns for row in rows] == written
    (Path(rows[1]["path"]).parent / "pruned.json").unlink()  # as a killed process may leave it
    (Path(rows[1]["path"]).parent / "pruning.json").write_text("{}")
    (out / "checkpoints.json").unlink()
    told = refused(capsys, run(home, out, "--checkpoints", "70%,85%,80%", "--compensate", "none", "--resume"))
    assert (
        f"another compensate: the finished part has 'auto', not 'none'; remove {out}/checkpoints/params-70 and " in told
    )
    assert printed(capsys, ["resume", str(out)])["checkpoints"] == again["checkpoints"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "'checkpoints' is required with front"),
        (["--checkpoints", "40%"], "are below the front's lower end"),
        (["--checkpoints", "70%,70.0%"], "params, as 70%; name every size once"),
        (["--checkpoints", "70%,70%"], "a size is named twice"),
        (["--checkpoints", "70x"], "expected a share such as 60%"),
        (["--checkpoints", "70%", "recover.method=lora", "recover.max_steps=2"], "recover.data is required for lora"),
        (["--checkpoints", "70%", "bench.prompt=64"], "64 positions"),
        (["--checkpoints", "70%", "eval.suite=papers"], "did you mean 'paper'"),
        (["--checkpoints", "70%", "recover_rivals=true"], "recover_rivals needs the section recover"),
        (["--checkpoints", "70%", "--random-architectures", "2"], "without front"),
        (["--checkpoints", "70%", "--no-front", "--params", "80%"], "checkpoints needs front"),
    ],
)
def test_what_is_no_run_of_a_front_is_refused(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert message in refused(capsys, run(home, tmp_path / "out", *options))
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())
