"""Blocks that wait off the device and are copied there one after the other: the same journals, checkpoints and losses.

There is no GPU here: the CPU stands in for one, with copies of the blocks that wait. `tests/unit/test_streaming.py` has
devices that are two.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from command_lines import printed, refused
from run_journals import journal
from safetensors.torch import load_file
from tiny import save_families

from tracenas.cli import invoke
from tracenas.models.checkpoints.source import open_source
from tracenas.models.surgery import streaming
from tracenas.pipeline import device_memory

pytestmark = pytest.mark.integration

SMALL = ["--samples", "4", "--seq-len", "32", "--channel-quantum", "8", "--threads", "1", "--batch", "4"]
BUDGET = ["--params", "60%"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """Tiny models and a text."""
    return save_families(tmp_path_factory.mktemp("device"), ("llama", "gemma2", "mixtral", "gpt_neox"), tokenizer)


def smaller(home: Path, directory: Path) -> str:
    """A file with an architecture of the llama: a narrower MLP, and no last block."""
    architecture = open_source(str(home / "llama")).space().base.to_json()
    architecture["layers"][0]["channels"] = 32
    architecture["layers"][-1] = {"skip": True}
    (directory / "arch.json").write_text(json.dumps(architecture))
    return str(directory / "arch.json")


@pytest.fixture
def small_device(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A CPU that stands in for a GPU on which nothing fits, the next block copied meanwhile; blocks, as they come."""
    copied: list[int] = []
    made = streaming.StreamedBlocks._copied

    def counting(self: streaming.StreamedBlocks, index: int) -> Any:
        copied.append(index)
        return made(self, index)

    whole = streaming.stream_blocks
    monkeypatch.setattr(streaming.StreamedBlocks, "_copied", counting)
    monkeypatch.setattr("tracenas.models.checkpoints.loading.stream_blocks", lambda *args: whole(*args, ahead=True))
    monkeypatch.setattr(device_memory, "room_of", lambda device: (1, 1 << 40))
    return copied


@pytest.mark.parametrize(
    ("model", "dtype", "options"),
    [
        ("llama", "bf16", ("--method", "fisher")),
        *(
            pytest.param(model, dtype, options, marks=pytest.mark.slow)
            for model, dtype, options in (
                ("mixtral", "bf16", ("--method", "fisher")),
                ("gemma2", "fp32", ("--method", "fisher")),
                ("gpt_neox", "fp32", ("--method", "fisher")),
                ("llama", "fp32", ("--method", "flap", "--reconstruct", "blocks", "--reconstruct-steps", "3")),
            )
        ),
    ],
)
def test_prune_writes_the_same_checkpoint(
    home: Path, tmp_path: Path, model: str, dtype: str, options: tuple[str, ...], request: pytest.FixtureRequest
) -> None:
    command = ["prune", str(home / model), "--data", str(home / "text.txt"), *options, *BUDGET, *SMALL]
    command += ["--dtype", dtype]
    assert invoke([*command, "--out", str(tmp_path / "whole")]) == 0
    copied = request.getfixturevalue("small_device")
    assert invoke([*command, "--out", str(tmp_path / "streamed")]) == 0
    assert copied
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "streamed")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("model", "proxy"),
    [
        ("llama", "auto"),
        pytest.param("llama", "phi", marks=pytest.mark.slow),
        pytest.param("gemma2", "kl", marks=pytest.mark.slow),
        pytest.param("mixtral", "loss", marks=pytest.mark.slow),
    ],
)
def test_a_search_writes_the_same_journal(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, proxy: str, request: Any
) -> None:
    sizes = ["--population", "6", "--elites", "2", "--iterations", "3", "--proxy", proxy]
    command = ["search", str(home / model), "--data", str(home / "text.txt"), *BUDGET, *SMALL, *sizes]
    assert invoke([*command, "--out", str(tmp_path / "whole")]) == 0
    assert request.getfixturevalue("small_device") == []
    assert invoke([*command, "--out", str(tmp_path / "streamed"), "-v"]) == 0
    assert request.getfixturevalue("small_device")
    by_blocks = capsys.readouterr().err.count("candidates block by block: ")
    assert by_blocks >= 3 if proxy != "phi" else by_blocks == 0
    assert journal(tmp_path / "streamed") == journal(tmp_path / "whole")


def test_eval_score_and_a_table_come_to_the_same(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    model, text = str(home / "llama"), str(home / "text.txt")
    commands = [
        ["eval", model, "--text", text, "--seq-len", "32", "--windows", "4"],
        ["score", model, "--arch", smaller(home, tmp_path), "--data", text, *SMALL, "--proxy", "phi"],
    ]
    whole = [printed(capsys, command) for command in commands]
    table = ["sensitivity", model, "--data", text, *SMALL, "--out"]
    assert invoke([*table, str(tmp_path / "whole.safetensors")]) == 0
    copied = request.getfixturevalue("small_device")
    assert [printed(capsys, command) for command in commands] == whole
    assert invoke([*table, str(tmp_path / "streamed.safetensors")]) == 0
    assert copied
    tables = [load_file(tmp_path / f"{name}.safetensors") for name in ("whole", "streamed")]
    assert all(torch.equal(value, tables[1][name]) for name, value in tables[0].items())


def test_on_a_cpu_the_limit_is_refused(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["eval", str(home / "llama"), "--text", str(home / "text.txt"), "--device", "cpu"]
    line = refused(capsys, [*command, "--device-memory", "20GiB"])
    assert line.endswith("device-memory 20GiB: of a GPU, and the device is cpu, whose memory is --host-memory's")


def test_a_limit_that_is_too_small_names_the_smallest_that_works(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, small_device: Any
) -> None:
    command = ["prune", str(home / "llama"), "--data", str(home / "text.txt"), "--method", "flap", *BUDGET, *SMALL]
    command += ["--out", str(tmp_path / "out"), "--device-memory"]
    line = refused(capsys, [*command, "1MB"])
    found = re.search(r"device-memory 1MB: too little for .*; accepted: (\d+MiB) or more$", line)
    assert found is not None
    assert not list(tmp_path.rglob("*.safetensors"))
    assert invoke([*command, found[1]]) == 0


@pytest.mark.parametrize("proxy", ["zico", "few_steps"])
def test_proxies_that_want_all_weights_say_so(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], small_device: Any, proxy: str
) -> None:
    command = ["score", str(home / "llama"), "--arch", smaller(home, tmp_path), "--data", str(home / "text.txt")]
    line = refused(capsys, [*command, *SMALL, "--proxy", proxy])
    assert line.endswith("want all weights on the device (device-memory)")


STUDY = ["--proxies", "phi,loss_compensated", "--rank", "4", "--compensate-samples", "6", "--architectures", "4"]
STUDY += ["--steps", "2", "--recover-batch", "2", "--windows", "4", "--resamples", "50", "--threads", "1"]


def test_a_study_wants_all_weights_there(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], small_device: Any
) -> None:
    model, text = str(home / "llama"), str(home / "text.txt")
    study = ["study", model, "--data", text, "--text", text, "--params", "80%", "--samples", "4", "--seq-len", "32"]
    line = refused(capsys, [*study, *STUDY, "--out", str(tmp_path / "out")])
    assert "study: candidates are trained, with all weights on the device" in line and "--device cpu" in line


@pytest.mark.slow
def test_a_chosen_calibration_set_is_the_same(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    model, text, sets = str(home / "llama"), str(home / "text.txt"), []
    chosen = ["select-calibration", model, "--data", text, *BUDGET, "--candidates", "3", "--samples", "4"]
    chosen += ["--seq-len", "32", "--held-out-samples", "4", "--threads", "1"]
    for name in ("whole", "streamed"):
        sets.append({**printed(capsys, [*chosen, "--out", str(tmp_path / f"{name}.safetensors")]), "path": ""})
        copied = request.getfixturevalue("small_device")
    assert copied
    assert sets[0] == sets[1]
