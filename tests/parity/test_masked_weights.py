"""Φ of unstructured candidates against autograd through the masks, and a base that is never changed."""

import math
from typing import Any

import pytest
import torch
from tiny import tiny_model

from tracenas.commands.metric.fitness import Fitness, copied_weights
from tracenas.families import Block, Options, config_family
from tracenas.models.functionals.loss import next_token_nll
from tracenas.proxies import PROXIES
from tracenas.saliency.linear import linear_module, projections
from tracenas.saliency.masks import Sparsity
from tracenas.saliency.unstructured import METRICS
from tracenas.scoring.evaluator import ScoringSettings
from tracenas.scoring.masked_weights import MaskedWeights, SparsityEvaluator
from tracenas.space.search_space import SearchSpace
from tracenas.space.sparsity import Shares

pytestmark = pytest.mark.parity

TOKENS = torch.randint(1, 257, (4, 20), generator=torch.Generator().manual_seed(2))
SHARES = Shares.from_json({"layers": [{"attention": 0.3 + 0.1 * i, "mlp": 0.6 - 0.1 * i} for i in range(4)]})


def blocks_of(model: Any) -> tuple[Block, ...]:
    config = model.config.to_dict()
    return config_family(config).blocks(config, Options())


def evaluator(model: Any, rank: int, proxy: str = "phi", metric: str = "wanda") -> SparsityEvaluator:
    blocks = blocks_of(model)
    masked = MaskedWeights(model, blocks, METRICS.get(metric), TOKENS, micro_batch=2)
    base = SearchSpace(tuple(b.spec for b in blocks), 0).base
    return SparsityEvaluator(masked, base, lambda _: 1, TOKENS, PROXIES.get(proxy), ScoringSettings(rank, 0, 2))


def direct_gradients(
    model: Any, masks: dict[tuple[int, str], torch.Tensor] | None
) -> tuple[float, dict[Any, torch.Tensor]]:
    """Loss and gradients through the masks, by autograd on products W ⊙ M."""
    blocks = blocks_of(model)
    leaves, saved = {}, []
    for index, sub, p in projections(blocks):
        module = linear_module(model, blocks[index], p)
        leaf = module.weight.detach().clone().requires_grad_(True)
        saved.append((module, module.weight))
        del module._parameters["weight"]
        module.weight = leaf if masks is None else leaf * masks[index, p.path]
        leaves[index, sub.spec.name, p.path] = leaf
    loss = next_token_nll(model, TOKENS).mean()
    found = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    for module, weight in saved:
        del module.weight
        module._parameters["weight"] = weight
    return float(loss.detach()), found


@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_full_rank_phi_is_that_of_autograd_through_the_masks(model_type: str) -> None:
    model = tiny_model(model_type)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    own = evaluator(model, rank=0)
    masks = own.masked.masks(SHARES.by_key())
    _, base = direct_gradients(model, None)
    loss, masked = direct_gradients(model, masks)
    phi = 0.0
    for key, share in SHARES.by_key().items():
        x = torch.cat([g.reshape(-1) for k, g in masked.items() if k[:2] == key]).double()
        y = torch.cat([g.reshape(-1) for k, g in base.items() if k[:2] == key]).double()
        phi += (1 - share) * float(torch.corrcoef(torch.stack([x, y]))[0, 1])
    score = own.score(SHARES)
    assert score.loss == pytest.approx(loss, abs=1e-5) and score.score == pytest.approx(phi, abs=1e-5)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_the_dense_candidate_has_the_base_s_score_at_any_rank() -> None:
    dense = Shares(tuple((("attention", 0), ("mlp", 0)) for _ in range(4)))
    own = evaluator(tiny_model("llama"), rank=8)
    score = own.score(dense)
    assert score.loss == pytest.approx(own.base_loss) and score.score == pytest.approx(8.0, abs=1e-6)
    assert own.score(SHARES).score < 8


@pytest.mark.parametrize("metric", ["sparsegpt", "magnitude", "random"])
def test_masks_have_the_asked_shares_for_any_metric(metric: str) -> None:
    own = evaluator(tiny_model("llama"), rank=0, proxy="loss", metric=metric)
    for (index, path), stays in own.masked.masks(SHARES.by_key()).items():
        name = "mlp" if "mlp" in path else "attention"
        assert int((~stays).sum()) == stays.shape[0] * int(SHARES.by_key()[index, name] * stays.shape[1] + 1e-9)
    assert math.isfinite(own.score(SHARES).score)


def test_the_base_is_bit_identical_after_an_exception() -> None:
    model = tiny_model("llama")
    blocks = blocks_of(model)
    own = evaluator(model, rank=8)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    parameters = [id(linear_module(model, blocks[i], p).weight) for i, _, p in projections(blocks)]
    with pytest.raises(RuntimeError), own.masked.realise(own.masked.masks(SHARES.by_key())):
        raise RuntimeError("out of memory")
    broken = {k: v for k, v in own.masked.masks(SHARES.by_key()).items() if k != (2, "mlp.up_proj")}
    with pytest.raises(KeyError), own.masked.realise(broken):
        pass
    with pytest.raises(RuntimeError), copied_weights(model, blocks):
        for i, _, p in projections(blocks):
            linear_module(model, blocks[i], p).weight.zero_()
        raise RuntimeError("out of memory")
    handle = model.model.layers[1].register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("no memory")))
    assert not own.score(SHARES).ok and "no memory" in str(own.score(SHARES).reason)
    handle.remove()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert parameters == [id(linear_module(model, blocks[i], p).weight) for i, _, p in projections(blocks)]


def test_fitness_restores_the_model_and_reports_what_was_lost() -> None:
    model = tiny_model("llama")
    blocks = blocks_of(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fitness = Fitness(model, blocks, TOKENS, TOKENS, Sparsity(0.5), "layer", gradients=None, micro_batch=2, seed=0)
    results = {name: fitness({"metric": name}) for name in ("magnitude", "wanda", "random")}
    assert fitness({"metric": "W * X"}) == results["wanda"]
    assert results["magnitude"]["lost"]["weight"] == min(r["lost"]["weight"] for r in results.values())
    assert results["wanda"]["lost"]["activation"] == min(r["lost"]["activation"] for r in results.values())
    failed = fitness({"metric": "1 + sqrt(X - X)"})
    assert failed == {
        "failed": "metric '1 + sqrt(X - X)': 'X - X' at column 10 is constant on layer 0 self_attn.q_proj"
    }
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
