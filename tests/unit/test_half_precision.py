"""Names of dtypes, and float16: gradients are scaled on their way through the model, and nowhere else."""

from pathlib import Path
from typing import Any

import pytest
import torch
from proxy_setting import ProxySetting, draw
from tiny import tiny_model

from tracenas.config import EvalConfig, PruneConfig, RecoverConfig, build
from tracenas.errors import UserError
from tracenas.families import Options, config_family
from tracenas.models.checkpoints.loading import pick_dtype
from tracenas.models.functionals.loss import gradient_scale
from tracenas.models.surgery.shared_lora import SharedLora
from tracenas.proxies import PROXIES
from tracenas.recovery import once_for_all
from tracenas.recovery.short import ShortSettings
from tracenas.saliency import gradients, products
from tracenas.saliency.nirvana import loss_saliency, sequence_loss
from tracenas.scoring import masked_weights, measuring
from tracenas.scoring.evaluator import ScoringSettings
from tracenas.space.search_space import SearchSpace

SCALE = 2.0**14


@pytest.mark.parametrize(
    ("names", "short", "dtype"),
    [
        (("fp32", "float32", "torch.float32", "float", "FP32"), "fp32", torch.float32),
        (("bf16", "bfloat16", "torch.bfloat16"), "bf16", torch.bfloat16),
        (("fp16", "float16", "torch.float16", "half"), "fp16", torch.float16),
    ],
)
def test_names(names: tuple[str, ...], short: str, dtype: torch.dtype) -> None:
    for name in names:
        assert build(EvalConfig, {"models": ("m",), "text": "t", "dtype": name}).dtype == short
        pruned = build(PruneConfig, {"model": "m", "arch": "a", "out": "o", "save_dtype": name})
        assert pruned.save_dtype == short
        assert pick_dtype(name, torch.device("cpu")) == dtype


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UserError, match=r"^dtype 'fp8': accepted: auto, fp32, bf16, fp16$"):
        build(
            RecoverConfig, {"model": "m", "method": "pretrain", "data": "d", "out": "o", "max_steps": 1, "dtype": "fp8"}
        )
    with pytest.raises(UserError, match="accepted: auto, fp32, bf16, fp16"):
        pick_dtype("int8", torch.device("cpu"))


def test_only_float16_is_scaled() -> None:
    model = tiny_model("llama")
    assert [gradient_scale(model.to(d), 70_000) for d in (torch.float32, torch.bfloat16)] == [1.0, 1.0]
    assert gradient_scale(model.half(), 70_000) == 2.0**16


def scaled(monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
    monkeypatch.setattr(module, "gradient_scale", lambda *_: SCALE)


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_proxies_do_not_see_the_scale(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = ProxySetting(family)
    names = [name for name in PROXIES if PROXIES.get(name).backward]
    assert len(names) > 5
    arch, settings = setting.architectures(3)[2], ScoringSettings(rank=4, seed=0, micro_batch=2)
    plain = setting.panel(names, settings).measure(arch)
    scaled(monkeypatch, measuring)
    for name, score in setting.panel(names, settings).measure(arch).items():
        if plain[name].value is None:
            assert family == "mixtral" and score.value is None, name
        else:
            assert score.value == pytest.approx(plain[name].value, rel=1e-4), name


@pytest.mark.parametrize("family", ["llama", "mixtral"])
@pytest.mark.parametrize("allowance", [None, 1])
def test_saliencies_do_not_see_the_scale(family: str, allowance: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured() -> dict[Any, torch.Tensor]:
        model = tiny_model(family)
        blocks = config_family(model.config.to_dict()).blocks(model.config.to_dict(), Options())
        if allowance is None:
            return loss_saliency(model, blocks, draw(4, 24, 0), 2)[0]
        return products.unit_products(model, blocks, draw(4, 24, 0), 2, sequence_loss, allowance=allowance)

    plain = measured()
    scaled(monkeypatch, products)
    for key, value in measured().items():
        torch.testing.assert_close(value, plain[key], rtol=1e-4, atol=1e-9)


def test_gradient_statistics_do_not_see_the_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    blocks = config_family(model.config.to_dict()).blocks(model.config.to_dict(), Options())
    files = [tmp_path / "plain.safetensors", tmp_path / "scaled.safetensors"]
    for file in files:
        gradients.write_gradients(model, blocks, draw(4, 24, 0), file)
        scaled(monkeypatch, gradients)
    from safetensors.torch import load_file

    plain, again = map(load_file, files)
    for name, value in again.items():
        torch.testing.assert_close(value, plain[name], rtol=1e-4, atol=1e-9)


def test_masked_weights_do_not_see_the_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    from tracenas.saliency.unstructured import METRICS

    def sums() -> Any:
        model = tiny_model("llama")
        blocks = config_family(model.config.to_dict()).blocks(model.config.to_dict(), Options())
        tokens = draw(4, 24, 0)
        masked = masked_weights.MaskedWeights(model, blocks, METRICS.get("magnitude"), tokens, micro_batch=2)
        base = SearchSpace(tuple(b.spec for b in blocks), 0).base
        evaluator = masked_weights.SparsityEvaluator(
            masked, base, lambda _: 1, tokens, PROXIES.get("phi"), ScoringSettings(4, 0, 2)
        )
        assert evaluator._base is not None
        return evaluator._base.parts

    plain = sums()
    scaled(monkeypatch, masked_weights)
    for key, value in sums().items():
        torch.testing.assert_close(value, plain[key], rtol=1e-4, atol=1e-9)


def test_once_for_all_tuning_does_not_see_the_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    def tuned() -> list[torch.Tensor]:
        setting = ProxySetting("llama")
        lora = SharedLora(setting.net, 2, alpha=4, seed=0)
        pool = setting.architectures(3)
        batches = [draw(2, 16, 5)] * 2
        once_for_all.tune_once_for_all(setting.net, lora, batches, 2, lambda: pool, ShortSettings(learning_rate=1e-3))
        return [p.detach() for p in lora.parameters]

    plain = tuned()
    scaled(monkeypatch, once_for_all)
    for value, expected in zip(tuned(), plain, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-6)
