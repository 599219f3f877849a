"""`prune --scales` through the command line: what is written, told and refused."""

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

pytestmark = pytest.mark.integration

NORM = "model.norm.weight"
SETTINGS = ["--method", "uniform", "--params", "50%", "--samples", "8", "--channel-quantum", "8", "--threads", "1"]
FURTHER = (["--reconstruct", "blocks", "--reconstruct-steps", "5"], ["--dtype", "bf16"])
OPTIONS: list[Any] = [[], *(pytest.param(options, marks=pytest.mark.slow) for options in FURTHER)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A model that has learned something, an encoder–decoder, and tokens of the source that the first has learned."""
    home = tmp_path_factory.mktemp("scales")
    trained_model("llama", steps=150, max_position_embeddings=128).save_pretrained(home / "model")
    tokenizer.save_pretrained(home / "model")
    save_tiny(home / "t5", "t5", tokenizer)
    save_tokens(home / "tokens.safetensors", source_tokens(88, 128, 0))
    save_words(home / "text.txt", 9000)
    return home


def command(home: Path, out: Path, *options: str, data: str = "tokens.safetensors", model: str = "model") -> list[str]:
    return ["prune", str(home / model), "--data", str(home / data), "--out", str(out), *SETTINGS, *options]


def gains(path: Path) -> torch.Tensor:
    return load_file(path / "model.safetensors")[NORM]


@pytest.mark.parametrize("options", OPTIONS)
def test_the_logits_factor_is_in_the_norm(
    options: list[str], home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    as_it_was = printed(capsys, command(home, tmp_path / "none", *options, "--scales", "none"))
    assert as_it_was["scales"] is None
    base, rounding = gains(home / "model"), 2.0**-8 if "bf16" in options else 1e-6
    torch.testing.assert_close(gains(tmp_path / "none"), base.to(gains(tmp_path / "none").dtype), rtol=0, atol=0)
    scaled = printed(capsys, command(home, tmp_path / "scaled", *options, "--scales", "logits"))
    facts = scaled["scales"]
    assert facts["asked"] == "logits" and list(facts["factors"]) == ["model.norm"]
    factor = facts["factors"]["model.norm"]
    assert abs(factor - 1) > 0.01 and facts["losses"]["after"] < facts["losses"]["before"] - 1e-3
    expected = factor * base.double()
    torch.testing.assert_close(gains(tmp_path / "scaled").double(), expected, rtol=rounding, atol=rounding)
    others = [load_file(tmp_path / name / "model.safetensors") for name in ("none", "scaled")]
    assert all(torch.equal(others[0][name], others[1][name]) for name in others[0] if name != NORM)
    assert scaled["loss"] != as_it_was["loss"] and scaled["compensation"] == as_it_was["compensation"]
    assert f"| scales | the logits by {factor:.4f}," in (tmp_path / "scaled" / "README.md").read_text()


@pytest.mark.parametrize("options", OPTIONS)
def test_every_factor_is_in_its_tensor(
    options: list[str], home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed(capsys, command(home, tmp_path / "none", *options, "--scales", "none"))
    facts = printed(capsys, command(home, tmp_path / "fit", *options))["scales"]
    assert facts["asked"] == "fit" and len(facts["factors"]) == 4 * 4 + 1
    assert facts["losses"]["after"] < facts["losses"]["before"] - 1e-3
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("none", "fit"))
    assert before.keys() == after.keys()
    places = facts["factors"]
    rounding = 2.0**-7 if "bf16" in options else 1e-5
    for name, tensor in after.items():
        expected = places.get(name.rpartition(".")[0], 1.0) * before[name].double()
        torch.testing.assert_close(
            tensor.double(), expected, rtol=rounding, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert {f"{path}.weight" for path in places} <= after.keys()
    assert "17 factors of norms and output projections" in (tmp_path / "fit" / "README.md").read_text()


def test_where_it_goes_and_where_not(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = printed(capsys, command(home, tmp_path / "ridge", "--compensate", "ridge"))
    assert plain["scales"] is None and torch.equal(gains(tmp_path / "ridge"), gains(home / "model"))
    words = command(home, tmp_path / "t5", "--seq-len", "64", data="text.txt", model="t5")
    assert printed(capsys, words)["scales"] is None
    capsys.readouterr()
    assert invoke(command(home, tmp_path / "out", "--compensate", "ridge", "--scales", "fit")) == 2
    assert "scales needs --compensate best" in capsys.readouterr().err
    assert invoke(command(home, tmp_path / "out", "--scales", "0.9")) == 2
    assert "scales '0.9': accepted: fit, logits, none" in capsys.readouterr().err
