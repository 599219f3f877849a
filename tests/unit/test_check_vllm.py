"""scripts/check_vllm.py without vLLM: what counts as agreement, and what a failing environment is told as."""

import sys
from pathlib import Path
from typing import Any

import pytest
from scripts_as_modules import load_script


@pytest.fixture(scope="module")
def script() -> Any:
    return load_script("check_vllm")


def expectation(name: str = "a") -> dict[str, Any]:
    return {"model": f"/models/{name}", "family": "llama", "prompt": [1], "tokens": [4] * 20, "logprob": -1.0}


@pytest.mark.parametrize(
    ("tokens", "logprob", "passed"),
    [([4] * 20, -1.001, True), ([4] * 20, -1.003, False), ([4] * 19 + [5], -1.0, False), ([4] * 19, -1.0, False)],
)
def test_agreement(script: Any, tokens: list[int], logprob: float, passed: bool) -> None:
    found = {"tokens": tokens, "logprob": logprob, "implementation": "X", "seconds": 1.0, "versions": {}}
    result = script.compare(expectation(), found)
    assert result["passed"] == passed and result["model"] == "a" and result["family"] == "llama"
    assert result["equal_tokens"] == sum(t == 4 for t in tokens)


def test_an_environment_without_vllm_is_told_for_every_model(script: Any, tmp_path: Path) -> None:
    (tmp_path / "python").write_text(f'#!/bin/sh\nexec {sys.executable} -S -I "$@"\n')  # no site-packages
    (tmp_path / "python").chmod(0o755)
    results = list(script.run_other(str(tmp_path / "python"), [expectation("a"), expectation("b")], False))
    assert [r["model"] for r in results] == ["a", "b"] and not any(r["passed"] for r in results)
    assert all("status 1" in r["error"] and "No module named 'vllm'" in r["error"] for r in results)


def test_wrong_arguments(script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        script.main(["a"])
    assert ended.value.code == 2 and "--vllm-python" in capsys.readouterr().err
