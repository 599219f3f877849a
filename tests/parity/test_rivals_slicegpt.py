"""SliceGPT: nothing changes at full width; below it, it is the dense model with its stream projected."""

from typing import Any

import pytest
import torch
from benchmark_modules import load_benchmark
from tiny import tiny_model

from tracenas.errors import UserError
from tracenas.families import Options, config_family

pytestmark = pytest.mark.parity

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": False, "mlp_bias": False, "tie_word_embeddings": True},
    "qwen2": {"use_sliding_window": False},
    "qwen3": {"attention_bias": False},
}


def setting(family: str) -> tuple[Any, Any, torch.Tensor]:
    model = tiny_model(family, **FAMILIES[family]).double()
    config = model.config.to_dict()
    blocks = config_family(config).blocks(config, Options(channel_quantum=8))
    return model, blocks, torch.randint(1, 257, (6, 11), generator=torch.Generator().manual_seed(6))


def sliced(model: Any, blocks: Any, tokens: torch.Tensor, width: int) -> Any:
    return load_benchmark("rivals.slicegpt").sliced(model, blocks, tokens, 4, width)


@pytest.mark.parametrize("family", FAMILIES)
def test_at_full_width_it_is_the_dense_model(family: str) -> None:
    model, blocks, tokens = setting(family)
    expected = model(tokens).logits
    found = sliced(model, blocks, tokens, 32)
    torch.testing.assert_close(found(tokens).logits, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model(tokens).logits, expected, rtol=0, atol=0)


def projected(model: Any, tokens: torch.Tensor, width: int) -> torch.Tensor:
    """Logits of the dense model whose stream is projected onto its components in front of every norm."""
    epsilon = model.model.norm.variance_epsilon
    calls: list[dict[str, Any]] = []
    hook = model.model.layers[0].self_attn.register_forward_pre_hook(
        lambda _, __, call: calls.append(call), with_kwargs=True
    )
    model(tokens, use_cache=False)
    hook.remove()
    call = {key: value for key, value in calls[0].items() if key != "hidden_states"}

    def kept(hidden: torch.Tensor) -> torch.Tensor:
        x = (hidden / (hidden.square().mean(-1, keepdim=True) + epsilon).sqrt()).flatten(0, 1)
        basis = torch.linalg.svd(x, full_matrices=False).Vh[:width]
        return hidden @ basis.T @ basis

    hidden = kept(model.model.embed_tokens(tokens))
    for layer in model.model.layers:
        hidden = kept(hidden + layer.self_attn(hidden_states=layer.input_layernorm(hidden), **call)[0])
        hidden = kept(hidden + layer.mlp(layer.post_attention_layernorm(hidden)))
    logits: torch.Tensor = model.lm_head(model.model.norm(hidden))
    return logits


@pytest.mark.parametrize("family", FAMILIES)
def test_below_it_the_stream_is_projected_onto_its_components(family: str) -> None:
    model, blocks, tokens = setting(family)
    found = sliced(model, blocks, tokens, 24)
    expected = projected(model, tokens, 24)
    assert not torch.allclose(expected, model(tokens).logits, atol=1e-2)
    torch.testing.assert_close(found(tokens).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_width_uses_up_the_budget(family: str) -> None:
    model, blocks, tokens = setting(family)
    slicegpt = load_benchmark("rivals.slicegpt")
    budget = int(0.8 * sum(p.numel() for p in model.parameters()))

    def parameters(width: int) -> int:
        return sum(p.numel() for p in sliced(model, blocks, tokens, width).parameters())

    width = slicegpt.width_within(model, budget, step=1)
    assert parameters(width) <= budget < parameters(width + 1)
    with pytest.raises(UserError, match="no width of the stream meets 10 parameters"):
        slicegpt.width_within(model, 10)
