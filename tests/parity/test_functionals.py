"""Functionals of the output in chunks against whole logits; what a pass of NIRVANA's saliency may take."""

import pytest
import torch
import torch.nn.functional as F
from tiny import LLAMA_8B, tiny_model

from tracenas.models.functionals import divergence, max_logit
from tracenas.models.functionals.loss import hidden_states

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("chunk", [1, 700, 1 << 20])
@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_max_logit_equals_whole_logits(monkeypatch: pytest.MonkeyPatch, model_type: str, chunk: int) -> None:
    monkeypatch.setattr(max_logit, "_CHUNK_ELEMENTS", {"cpu": chunk})
    model = tiny_model(model_type)
    tokens = torch.randint(1, 257, (3, 12), generator=torch.Generator().manual_seed(0))
    embedded = model.get_input_embeddings()(tokens).detach()
    gradients = []
    for whole in (False, True):
        inputs = embedded.clone().requires_grad_(True)
        handle = model.get_input_embeddings().register_forward_hook(lambda *_, x=inputs: x)
        if whole:
            values = model(input_ids=tokens, use_cache=False).logits.max(dim=1).values.mean(dim=1)
        else:
            values = max_logit.max_logit(model, tokens)
        handle.remove()
        gradients.append((values.detach(), torch.autograd.grad(values.sum(), inputs)[0]))
    (found, slope), (expected, reference) = gradients
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(slope, reference, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 5 * 257, 1 << 20])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_divergence_equals_whole_logits(monkeypatch: pytest.MonkeyPatch, chunk: int, softcap: float | None) -> None:
    monkeypatch.setattr(divergence, "_CHUNK_ELEMENTS", {"cpu": chunk})
    model = tiny_model("llama")
    tokens = torch.randint(1, 257, (2, 9), generator=torch.Generator().manual_seed(0))
    p = hidden_states(model, tokens).flatten(0, 1)
    q = p + 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    head = model.get_output_embeddings().weight
    found = divergence.token_kl(p, q, head, softcap)
    log_p, log_q = ((h @ head.T) if softcap is None else softcap * torch.tanh(h @ head.T / softcap) for h in (p, q))
    expected = F.kl_div(log_q.log_softmax(-1), log_p.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert float(divergence.token_kl(p, p, head, softcap).abs().max()) < 1e-6


def test_a_large_model_takes_one_pass_over_the_published_calibration() -> None:
    """32 × 128 tokens through Llama-3.1-8B in bf16: a batch, no gradient kept; 16 × 4,096 go block by block."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from tracenas.families import Options, config_family
    from tracenas.saliency.products import SHARE, _per_token, _plan

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**LLAMA_8B), dtype=torch.bfloat16)
    config = model.config.to_dict()
    blocks = config_family(config).blocks(config, Options(kv_groups=True))
    plan = _plan(model, blocks, torch.zeros(32, 128), 32, True, None)
    assert (plan.batch, len(plan.groups), plan.accumulate) == (32, 1, False)
    weights = sum(p.numel() * 2 for p in model.parameters())
    assert 32 * 128 * _per_token(blocks) * 2 < SHARE * weights < 0.2 * weights
    plan = _plan(model, blocks, torch.zeros(16, 4096), 1, True, None)
    sizes = [4 * sum(p.rows * p.columns for *_, p in group) for group in plan.groups]
    assert (
        plan.walks and plan.accumulate and plan.batch == 1 and len(plan.groups) == 32 and max(sizes) < SHARE * weights
    )
    assert [(i, p.path) for group in plan.groups for i, _, p in group] == [
        (i, p.path) for i, block in enumerate(blocks) for sub in block.sub_blocks for p in sub.projections
    ]
    assert not _plan(model, blocks, torch.zeros(16, 4096), 1, False, None).accumulate
