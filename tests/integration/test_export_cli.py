"""`tracenas export` and `--deploy` through the command line."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from gguf_cases import checkpoint, read_gguf
from test_cli import SEARCH, said

from tracenas.cli import invoke
from tracenas.demo import model_path
from tracenas.rundir import read_json

pytestmark = pytest.mark.integration

UNEVEN = [(0, 64), (4, 0), (2, 96), (4, 32)]


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("export") / "pruned", "llama", UNEVEN)


@pytest.fixture
def wrong_llama(tmp_path: Path) -> Path:
    """A program in the place of a Python with llama.cpp, whose logits are all zero."""
    program = tmp_path / "python-with-llama"
    program.write_text(
        f"#!{sys.executable}\n"
        "import json, sys, numpy\n"
        "if sys.argv[1] == '-c': sys.exit(print('llama_cpp is here'))\n"
        "asked = json.loads(sys.argv[2])\n"
        "numpy.zeros((len(asked['ids']), 257), numpy.float32).tofile(asked['logits'])\n"
        "print(json.dumps({'shape': [len(asked['ids']), 257], 'tokens': []}))\n"
    )
    program.chmod(0o755)
    return program


def test_a_checkpoint_becomes_a_gguf_file(pruned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "model.gguf"
    assert invoke(["export", str(pruned), "--format", "gguf", "--out", str(out), "--outtype", "q8_0", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["layout"], told["arch"], told["outtype"], told["check"]) == ("deci", "deci", "q8_0", None)
    assert told["bytes"] == out.stat().st_size and told["added_parameters"] > 0
    assert any("zero stubs" in note for note in told["notes"])
    metadata, _ = read_gguf(out)
    assert metadata["general.name"] == "pruned"
    assert [p.name for p in out.parent.iterdir()] == ["model.gguf"]


def test_people_are_told_what_was_written(pruned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["export", str(pruned), "--out", str(tmp_path / "a.gguf"), "layout=padded"]) == 0
    text = capsys.readouterr().out
    assert "padded (architecture llama)" in text and "note: PADDED: " in text and "no (--check)" in text


def test_the_python_function_does_the_same(pruned: Path, tmp_path: Path) -> None:
    import tracenas

    made = tracenas.export(pruned, out=tmp_path / "a.gguf", outtype="f16")
    assert made.path == tmp_path / "a.gguf" and made.facts["outtype"] == "f16"


def test_a_file_that_fails_its_check_is_not_left(
    pruned: Path,
    wrong_llama: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out" / "a.gguf"
    monkeypatch.chdir(wrong_llama.parent)
    argv = ["export", str(pruned), "--out", str(out), "--check", "--llama-python", f"./{wrong_llama.name}"]
    line = said(capsys, argv, status=1)
    assert "computes something else from the GGUF, which was deleted" in line
    assert "the first layer that differs is 0 (or what stands around the blocks)" in line
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--format", "onnx"], "format 'onnx': accepted: gguf"),
        (["--outtype", "f8"], "outtype 'f8': accepted: auto, f32, f16, bf16, q8_0"),
        (["--outtype", "q4_k_m"], "llama.cpp's llama-quantize"),
        (["--layout", "decl"], "unknown layout 'decl': did you mean 'deci'"),
        (["--layout", "openelm"], "layout openelm cannot hold this model: its head is the embeddings"),
        (["--tokenizer", "mine"], "tokenizer 'mine': accepted: auto, none"),
        (["--check-ids", "1,2"], "check-ids and llama-python need --check"),
        (["--check", "--llama-python", "/no/such/python"], "llama-python /no/such/python: No such file"),
        (["--check", "--check-ids", "1,x", "--llama-python", sys.executable], "check-ids '1,x': expected numbers"),
    ],
)
def test_wrong_settings_are_one_line(
    options: list[str], line: str, pruned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert line in said(capsys, ["export", str(pruned), "--out", str(tmp_path / "a.gguf"), *options])
    assert list(tmp_path.iterdir()) == []


def test_a_python_without_llama_cpp_is_told_before_anything_is_written(
    pruned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "llama_cpp.py").write_text("raise ImportError('libllama.so is not there')\n")
    argv = ["export", str(pruned), "--out", str(tmp_path / "a.gguf"), "--check", "--llama-python", sys.executable]
    line = said(capsys, argv)
    assert "cannot import llama_cpp (ImportError: libllama.so is not there); pip install llama-cpp-python" in line
    assert not (tmp_path / "a.gguf").exists()


def test_wrong_ids_are_refused(
    pruned: Path, wrong_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["export", str(pruned), "--out", str(tmp_path / "a.gguf"), "--check", "--llama-python", str(wrong_llama)]
    assert "257 is no token id; the model has 0 to 256" in said(capsys, [*argv, "--check-ids", "1,257"])
    assert "65 tokens, the file's context has 64" in said(capsys, [*argv, "--check-ids", ",".join(["1"] * 65)])


def test_wrong_models_and_places(pruned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "a.gguf")]
    (tmp_path / "empty").mkdir()
    assert "holds no config.json" in said(capsys, ["export", str(tmp_path / "empty"), *out])
    assert "no such directory" in said(capsys, ["export", str(tmp_path / "nowhere"), *out])
    assert "HF_HUB_OFFLINE is set" in said(capsys, ["export", "organisation/name", *out])
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "bert"}')
    assert "model family 'bert' is not supported" in said(capsys, ["export", str(other), *out])
    (other / "config.json").write_text((pruned / "config.json").read_text())
    assert "no model.safetensors" in said(capsys, ["export", str(other), *out])
    (tmp_path / "a.gguf").write_bytes(b"mine")
    assert "a.gguf: exists; choose another name" in said(capsys, ["export", str(pruned), *out])
    assert (tmp_path / "a.gguf").read_bytes() == b"mine"


def test_a_family_without_layout_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tiny import tiny_model

    tiny_model("gpt_neox").save_pretrained(tmp_path / "m")
    line = said(capsys, ["export", str(tmp_path / "m"), "--out", str(tmp_path / "a.gguf")])
    assert "knows no layout for the family 'gpt_neox'; accepted: gemma, gemma2" in line


def test_the_gguf_library_is_asked_for(
    pruned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "gguf" else found(name, *a))
    line = said(capsys, ["export", str(pruned), "--out", str(tmp_path / "a.gguf")])
    assert "pip install gguf" in line


def test_what_a_search_with_a_preset_finds_meets_it(tmp_path: Path) -> None:
    settings = ["--deploy", "gguf,tensor-parallel:2", "--out", str(tmp_path / "run")]
    assert invoke([*SEARCH, *settings]) == 0
    lines = (tmp_path / "run" / "journal.jsonl").read_text().splitlines()
    layers: list[dict[str, Any]] = [layer for line in lines for layer in json.loads(line)["arch"]["layers"]]
    counts = [layer for layer in layers if not layer.get("skip")]
    assert {layer["channels"] for layer in counts} <= {256, 448} and {layer["heads"] % 2 for layer in counts} == {0}
    assert "deploy: gguf,tensor-parallel:2" in (tmp_path / "run" / "config.yaml").read_text()
    best = tmp_path / "run" / "best.json"
    assert invoke(["prune", str(model_path()), "--arch", str(best), "--out", str(tmp_path / "pruned")]) == 0
    wide = read_json(best)
    wide["architecture"]["layers"][0] = {"heads": 10, "channels": 96}
    best.write_text(json.dumps(wide))
    assert invoke(["prune", str(model_path()), "--arch", str(best), "--out", str(tmp_path / "other")]) == 2


def test_a_preset_the_base_cannot_meet_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["plan", str(model_path()), "--no-timing", "--deploy"]
    assert "has 10 query heads, not divisible by 4" in said(capsys, [*argv, "tensor-parallel:4"])
    assert "unknown deploy preset 'vllm'" in said(capsys, [*argv, "vllm"])
