"""`prune --reconstruct blocks` through the command line: what is written, killed, resumed and refused."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from command_lines import printed
from safetensors.torch import load_file
from tiny import save_tiny, save_words
from trained import source_tokens, trained_model

from tracenas.cli import invoke
from tracenas.data.tokens import save_tokens
from tracenas.pipeline.refit.block_files import BlockFiles
from tracenas.pipeline.refit.work import BLOCKS, STARTED, work_directory

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]

SETTINGS = ["--method", "uniform", "--params", "60%", "--samples", "8", "--channel-quantum", "8", "--threads", "1"]
BLOCKS_TOO = ["--reconstruct", "blocks", "--reconstruct-steps", "40", "--reconstruct-rate", "3e-3"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A model that has learned something, an encoder–decoder, and tokens of the source that it has learned."""
    home = tmp_path_factory.mktemp("reconstruct")
    trained_model("llama", steps=150).save_pretrained(home / "model")
    tokenizer.save_pretrained(home / "model")
    save_tiny(home / "t5", "t5", tokenizer)
    save_tokens(home / "tokens.safetensors", source_tokens(88, 32, 0))
    save_tokens(home / "few.safetensors", source_tokens(1, 32, 0))
    save_words(home / "text.txt", 1500)
    return home


def command(home: Path, out: Path, *options: str, data: str = "tokens.safetensors", model: str = "model") -> list[str]:
    return ["prune", str(home / model), "--data", str(home / data), "--out", str(out), *SETTINGS, *options]


def refused(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    capsys.readouterr()
    assert invoke(argv) == 2
    *before, line = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("tracenas: ") and all(other.startswith("warning: ") for other in before)
    return line


def test_blocks_are_trained_written_and_told(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    unscaled = ["--scales", "none"]
    refitted = printed(capsys, command(home, tmp_path / "refitted", *unscaled))
    assert refitted["reconstruction"] is None
    out, kept = tmp_path / "out", {}

    def keep(files: BlockFiles) -> None:
        kept.update({path.name: load_file(path) for path in files.directory.glob(BLOCKS)})
        remove(files)

    remove = BlockFiles.remove
    monkeypatch.setattr(BlockFiles, "remove", keep)
    facts = (result := printed(capsys, command(home, out, *BLOCKS_TOO, *unscaled)))["reconstruction"]
    assert result["compensation"] == refitted["compensation"] and facts["start"] == refitted["choice"]["written"]
    assert facts["losses"]["before"] == pytest.approx(min(refitted["choice"]["losses"].values()), abs=1e-6)
    assert facts["written"] and facts["losses"]["after"] < facts["losses"]["before"] - 1e-3
    assert result["loss"] == pytest.approx(facts["loss"], abs=1e-4) and result["loss"] < refitted["loss"]
    assert (facts["steps"], facts["learning_rate"], len(facts["blocks"])) == (40, 3e-3, 4)
    assert all(block["kept"] == (block["after"] < block["before"]) for block in facts["blocks"])
    written = load_file(out / "model.safetensors")
    for block in facts["blocks"]:
        tensors = kept[f"block-{block['block']:04d}.safetensors"]
        assert bool(tensors) == block["kept"]
        for name, tensor in tensors.items():  # units stand in another order there
            found = written[f"model.layers.{block['block']}.{name}"]
            assert found.shape == tensor.shape
            assert torch.equal(found.flatten().sort().values, tensor.flatten().sort().values)
    card = (out / "README.md").read_text()
    used = sum(block["kept"] for block in facts["blocks"])
    assert f"40 steps of AdamW (peak 0.003) per block, 1,536 tokens; {used} of 4 blocks as trained" in card
    assert "--reconstruct blocks --reconstruct-steps 40 --reconstruct-rate 0.003" in card
    assert not work_directory(out).exists()


def test_what_is_worse_is_not_written(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed(capsys, command(home, tmp_path / "refitted"))
    wild = ["--reconstruct", "blocks", "--reconstruct-steps", "3", "--reconstruct-rate", "50"]
    facts = printed(capsys, command(home, tmp_path / "out", *wild))["reconstruction"]
    assert not facts["written"] and not any(block["kept"] for block in facts["blocks"])
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("refitted", "out"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_killed_and_resumed_equals_undisturbed(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    long = ["--reconstruct", "blocks", "--reconstruct-steps", "60", "--compensate", "sequential"]
    expected = printed(capsys, command(home, calm, *long))
    killed_after_blocks(command(home, killed, *long), work_directory(killed), 2)
    assert not killed.exists() or not any(killed.iterdir())
    line = refused(capsys, command(home, killed, *long))
    assert f"{work_directory(killed)} holds the finished blocks" in line and "--resume" in line
    line = refused(capsys, command(home, killed, *long, "--resume", "--seed", "1"))
    assert "--resume with another seed" in line
    line = refused(capsys, command(home, killed, *long[:2], "--reconstruct-steps", "9", *long[4:], "--resume"))
    assert "--resume with another reconstruct-steps" in line
    files = {path.name: path.stat().st_mtime_ns for path in work_directory(killed).glob(BLOCKS)}
    assert 2 <= len(files) < 4
    found = printed(capsys, command(home, killed, *long, "--resume"))
    assert found["reconstruction"] == expected["reconstruction"]
    assert (killed / "model.safetensors").read_bytes() == (calm / "model.safetensors").read_bytes()
    assert not work_directory(killed).exists()


def killed_after_blocks(argv: list[str], work: Path, count: int) -> None:
    """Run a command line in a forked process, and kill it once so many blocks are finished."""
    child = os.fork()
    if child == 0:
        os._exit(invoke(argv))
    while len(list(work.glob(BLOCKS))) < count:
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "it ended before"
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_an_unfinished_beginning_is_no_obstacle(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = work_directory(tmp_path / "out")
    work.mkdir()
    (work / STARTED).write_text("{}")
    printed(capsys, command(home, tmp_path / "out", "--reconstruct", "blocks", "--reconstruct-steps", "2"))
    assert not work.exists()


def test_what_else_stands_in_the_work_directory_is_left(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = work_directory(tmp_path / "out")
    work.mkdir()
    (work / "notes.txt").write_text("mine")
    line = refused(capsys, command(home, tmp_path / "out", *BLOCKS_TOO))
    assert f"work directory {work}: exists and is not empty" in line
    assert (work / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--reconstruct-steps", "5"], "reconstruct-steps is not used here"),
        (["--resume"], "resume is not used here"),
        (["--reconstruct", "heads"], "reconstruct 'heads'"),
        (["--reconstruct", "blocks", "--reconstruct-steps", "0"], "reconstruct-steps '0'"),
        (["--reconstruct", "blocks", "--reconstruct-rate", "0"], "reconstruct-rate '0'"),
    ],
)
def test_settings_that_make_no_sense(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    line = refused(capsys, command(home, tmp_path / "out", *options))
    assert message in line.replace("_", "-")
    assert not list(tmp_path.iterdir())


def test_encoder_decoders_are_refused(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arch = tmp_path / "arch.json"
    arch.write_text('{"architecture": {"layers": []}}')
    argv = ["prune", str(home / "t5"), "--arch", str(arch), "--data", str(home / "text.txt"), "--reconstruct", "blocks"]
    line = refused(capsys, [*argv, "--out", str(tmp_path / "out")])
    assert "--reconstruct blocks takes decoder-only models; 't5' is an encoder–decoder" in line
    assert [path.name for path in tmp_path.iterdir()] == ["arch.json"]


def test_too_little_text(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = command(home, tmp_path / "out", *BLOCKS_TOO, "--samples", "1", data="few.safetensors")
    assert "one sequence of text in all" in refused(capsys, argv)
    assert not [path for path in tmp_path.iterdir() if any(path.iterdir())]


def test_a_run_trains_what_it_compares(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["run", str(home / "model"), "--data", str(home / "tokens.safetensors"), "--out", str(tmp_path / "run")]
    argv += ["--text", str(home / "tokens.safetensors"), "--windows", "8", "--params", "60%", "--samples", "8"]
    argv += ["--population", "4", "--elites", "2", "--iterations", "1", "--random-architectures", "0"]
    argv += ["--channel-quantum", "8", "--threads", "1", "--start", "none"]
    argv += ["prune.reconstruct=blocks", "prune.reconstruct_steps=10"]
    assert invoke(argv) == 0
    capsys.readouterr()
    record = json.loads((tmp_path / "run" / "pruned.json").read_text())
    assert record["reconstruction"]["steps"] == 10
    rows = json.loads((tmp_path / "run" / "comparison.json").read_text())
    compared = {row["name"]: row["checkpoint"]["realisation"] for row in rows if "checkpoint" in row}
    assert compared == {"uniform": "best, blocks trained", "found": "best, blocks trained"}
    assert not list((tmp_path / "run").glob("*.reconstruction"))
