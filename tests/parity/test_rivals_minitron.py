"""Minitron's widths against sums written out, and its cut model against one whose channels are masked."""

from typing import Any

import pytest
import torch
from benchmark_modules import load_benchmark
from tiny import tiny_model
from torch import nn

from tracenas.errors import UserError

pytestmark = pytest.mark.parity

BARE = {"attention_bias": False, "mlp_bias": False}
FAMILIES: dict[str, dict[str, Any]] = {"llama": BARE, "qwen2": {}, "qwen3": {"attention_bias": False}}


def tokens() -> torch.Tensor:
    return torch.randint(1, 257, (5, 9), generator=torch.Generator().manual_seed(3))


def test_scores_are_the_papers_sums() -> None:
    model, seen = tiny_model("llama", **BARE), {}
    layer = model.model.layers[2]
    watched = {"first": model.model.layers[0].input_layernorm, "neurons": layer.mlp.down_proj}
    for name, module in watched.items():
        module.register_forward_hook(lambda _, given, out, name=name: seen.update({name: (given[0], out)}))
    found = load_benchmark("rivals.minitron").activations(model, tokens(), 2)
    model(tokens())
    neurons = sum(seen["neurons"][0][b].abs().mean(0) ** 2 for b in range(5)) ** 0.5
    torch.testing.assert_close(found.neurons[2], neurons.double(), rtol=1e-6, atol=1e-6)
    norms = load_benchmark("rivals.plain_decoders").stream_norms(model)
    assert len(norms) == 2 * 4 + 1
    stream = torch.zeros(32, dtype=torch.float64)
    for norm in norms:
        outputs: list[torch.Tensor] = []
        handle = norm.register_forward_hook(lambda _, __, out, outputs=outputs: outputs.append(out))
        model(tokens())
        handle.remove()
        stream += sum(outputs[0][b].abs().mean(0).double() ** 2 for b in range(5)) ** 0.5
    torch.testing.assert_close(found.stream, stream, rtol=1e-6, atol=1e-6)


class MaskedNorm(nn.Module):
    """An RMS norm over the channels that stay."""

    def __init__(self, norm: nn.Module, kept: torch.Tensor) -> None:
        super().__init__()
        self.norm, self.kept = norm, kept

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * self.kept
        scale = (x.square().sum(-1, keepdim=True) / self.kept.sum() + self.norm.variance_epsilon).rsqrt()
        return self.norm.weight * self.kept * x * scale


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cut_model_is_the_masked_one(family: str) -> None:
    minitron = load_benchmark("rivals.minitron")
    model = tiny_model(family, **FAMILIES[family])
    scores = minitron.activations(model, tokens(), 5)
    found = minitron.cut(model, scores, minitron.Widths(24, 40))
    kept = torch.zeros(32)
    kept[scores.stream.argsort(descending=True)[:24]] = 1
    for layer, neurons in zip(model.model.layers, scores.neurons, strict=True):
        layer.mlp.down_proj.weight[:, neurons.argsort(descending=True)[40:]] = 0
        layer.input_layernorm = MaskedNorm(layer.input_layernorm, kept)
        layer.post_attention_layernorm = MaskedNorm(layer.post_attention_layernorm, kept)
    model.model.norm = MaskedNorm(model.model.norm, kept)
    torch.testing.assert_close(found(tokens()).logits, model(tokens()).logits, rtol=1e-4, atol=1e-4)


def test_widths_use_up_the_budget() -> None:
    minitron = load_benchmark("rivals.minitron")
    model = tiny_model("llama", **BARE, hidden_size=64, intermediate_size=192)
    total = sum(p.numel() for p in model.parameters())
    widths = minitron.widths_within(model, int(0.75 * total))
    narrow = minitron.cut(model, minitron.activations(model, tokens(), 5), widths)
    step = 3 * 4 * 8 * widths.stream  # another eight neurons in every MLP
    assert 0.75 * total - step < sum(p.numel() for p in narrow.parameters()) <= 0.75 * total
    with pytest.raises(UserError, match="no widths of stream and MLPs meet 10 parameters"):
        minitron.widths_within(model, 10)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "gemma2"}, "is a 'gemma2', whose residual stream it cannot cut: llama, mistral, qwen2, qwen3"),
        ({"model_type": "llama", "attention_bias": True}, "has biases in its residual stream"),
    ],
)
def test_other_models_are_refused(config: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_benchmark("rivals.plain_decoders").check_plain("minitron", "m", config)
