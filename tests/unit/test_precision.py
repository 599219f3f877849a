"""What dtype `auto` comes to on a CPU: bf16 where it is faster and the loss of the base stays."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import save_families

from tracenas.config import SearchConfig
from tracenas.models.checkpoints.loading import LoadedModel, load
from tracenas.models.checkpoints.source import open_source
from tracenas.models.functionals.perplexity import perplexity, window_losses
from tracenas.pipeline import precision
from tracenas.pipeline.precision import in_half_precision, may_halve

CPU = torch.device("cpu")
STORED = {"dtype": "bfloat16"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A tiny Llama."""
    return save_families(tmp_path_factory.mktemp("precision"), ("llama",), tokenizer) / "llama"


@pytest.fixture(autouse=True)
def twice_as_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products in bf16."""
    monkeypatch.setattr(precision, "product_flops", lambda _, dtype: 2.0 if dtype == torch.bfloat16 else 1.0)


@pytest.mark.parametrize(
    ("changed", "halved"),
    [
        ({}, True),
        ({"dtype": "fp32"}, False),
        ({"config": {"dtype": "float32"}}, False),
        ({"config": {"torch_dtype": "bfloat16"}}, True),
        ({"config": {}}, False),
        ({"tokens": 10}, False),
        ({"device": torch.device("cuda")}, False),
    ],
)
def test_what_is_worth_a_comparison(changed: dict[str, Any], halved: bool) -> None:
    settings = {"dtype": "auto", "device": CPU, "config": STORED, "parameters": 10**9, "tokens": 2048, **changed}
    assert may_halve(**settings) is halved


def test_a_processor_without_bf16_stays_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "product_flops", lambda *_: 1.0)
    assert not may_halve("auto", CPU, STORED, 10**9, 2048)


@pytest.mark.parametrize(("least", "found"), [(1.0, "bf16"), (-1.0, "fp32")])
def test_the_loss_of_the_base_decides(
    model: Path, least: float, found: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(precision, "may_halve", lambda *_: True)
    monkeypatch.setattr(precision, "DIFFERENCE", least)
    tokens = torch.randint(5, 60, (6, 32), generator=torch.Generator().manual_seed(0))
    config = SearchConfig(model=str(model), data="-", params="60%", out=Path("run"))
    exact: LoadedModel = load(str(model), dtype="fp32", device="cpu")
    with caplog.at_level(logging.INFO, logger="tracenas"):
        loaded = in_half_precision(open_source(str(model)), config, exact, 1, tokens)
    assert loaded.dtype_name == found
    assert loaded.dtype_name == next(iter({short(p) for p in loaded.model.parameters()}))
    assert f"dtype auto: {found}" in caplog.text and "nats per token on 192 tokens" in caplog.text
    fresh = load(str(model), dtype=found, device="cpu")
    assert torch.equal(window_losses(loaded.model, tokens), window_losses(fresh.model, tokens))


def short(parameter: torch.Tensor) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16"}[parameter.dtype]


def test_losses_of_windows_have_the_perplexity_as_their_mean(model: Path) -> None:
    net = load(str(model), dtype="fp32", device="cpu").model
    tokens = torch.randint(5, 60, (5, 16), generator=torch.Generator().manual_seed(1))
    losses = window_losses(net, tokens, 2)
    assert losses.shape == (5,) and losses.dtype == torch.float64
    assert float(losses.mean()) == pytest.approx(perplexity(net, tokens, 2).nll, rel=1e-6)
