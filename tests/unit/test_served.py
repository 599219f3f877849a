"""Programs that serve, and what is none: told in a line, and ended."""

import os
from pathlib import Path

import pytest
from tiny import save_tiny

from tracenas.benchmark.served import Served
from tracenas.cli import invoke
from tracenas.errors import UserError
from tracenas.exporters.gguf.check import find_llama
from tracenas.pipeline.served_settings import visible_gpu

ANSWERS = """#!/bin/sh
echo $$ > "{pid}"
{before}
echo '{{"gpu": false}}'
read request
echo '{after}'
exec sleep 60
"""


def program(directory: Path, before: str = ":", after: str = '{"runs": []}') -> Path:
    """A program that greets, answers once, and stays."""
    path = directory / "python"
    path.write_text(ANSWERS.format(pid=directory / "pid", before=before, after=after))
    path.chmod(0o755)
    return path


def test_a_program_that_answers(tmp_path: Path) -> None:
    with Served("llama.cpp", [str(program(tmp_path))]) as served:
        assert served.facts == {"gpu": False} and served.ask({}) == {"runs": []}
    _ended(tmp_path)


@pytest.mark.parametrize("noise", ["(base) activated", "[1]", "3"])
def test_what_a_wrapper_prints_before_is_told(tmp_path: Path, noise: str) -> None:
    with pytest.raises(UserError) as told:
        Served("llama.cpp", [str(program(tmp_path, f"echo '{noise}'"))])
    assert str(told.value).startswith(f"llama.cpp said '{noise}', which is no answer: expected a Python")
    _ended(tmp_path)


def test_an_answer_that_is_none(tmp_path: Path) -> None:
    with (
        Served("vLLM", [str(program(tmp_path, after="oops"))]) as served,
        pytest.raises(UserError, match="vLLM said 'oops'"),
    ):
        served.ask({})
    _ended(tmp_path)


@pytest.mark.parametrize("said", ["llama_cpp", ""])
def test_a_llama_python_that_is_none(tmp_path: Path, said: str) -> None:
    """`/bin/true`, say, for which every module is there."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho '{said}'\n")
    python.chmod(0o755)
    with pytest.raises(UserError, match=f"llama-python {python}: cannot import llama_cpp"):
        find_llama(python)


@pytest.mark.parametrize("said", ["no JSON", "3", "[]", ""])
def test_a_vllm_python_that_is_none(
    tmp_path: Path, tokenizer: object, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho '{said}'\n")
    python.chmod(0o755)
    model = str(save_tiny(tmp_path / "llama", "llama", tokenizer))
    capsys.readouterr()
    argv = ["bench", model, "--backend", "vllm", "--vllm-python", str(python), "--prompt", "8", "--new-tokens", "2"]
    assert invoke(argv) == 2
    line = capsys.readouterr().err.strip()
    assert line.startswith(f"tracenas: backend vllm needs vLLM, which {python} has not: ") and "\n" not in line


def _ended(directory: Path) -> None:
    with pytest.raises(ProcessLookupError):
        os.kill(int((directory / "pid").read_text()), 0)


def test_a_gpu_is_counted_among_those_that_are_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpu("cuda:3") == "3"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, GPU-5a")
    assert [visible_gpu(f"cuda:{index}") for index in (0, 1)] == ["4", "GPU-5a"]
    with pytest.raises(UserError, match="device cuda:2: CUDA_VISIBLE_DEVICES=4, GPU-5a leaves 2 GPUs"):
        visible_gpu("cuda:2")
