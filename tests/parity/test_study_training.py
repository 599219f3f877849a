"""Training a candidate inside the super-network against training its checkpoint; the shared LoRA against a merge."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_model

import tracenas
from tracenas.families import Options, config_family
from tracenas.models.checkpoints.writing import save_pruned
from tracenas.models.functionals.loss import next_token_nll
from tracenas.models.surgery.ordering import Ordering
from tracenas.models.surgery.private import private_weights
from tracenas.models.surgery.shared_lora import SharedLora
from tracenas.models.surgery.supernet import Supernet
from tracenas.recovery.once_for_all import tune_once_for_all
from tracenas.recovery.short import ShortSettings, next_token_loss, short_recovery
from tracenas.space.architecture import Architecture
from tracenas.space.search_space import SearchSpace

pytestmark = pytest.mark.parity

FAMILIES = ["llama", "qwen3", "gemma2", "phi3", "gpt_neox"]
SETTINGS = ShortSettings(learning_rate=1e-2, micro_batch=2)


class Case:
    """A super-network of a tiny model and a candidate in it with a skipped block."""

    def __init__(self, model_type: str, seed: int = 0) -> None:
        self.model = tiny_model(model_type)
        self.family = config_family(self.model.config.to_dict())
        self.blocks = self.family.blocks(self.model.config.to_dict(), Options())
        rng = np.random.default_rng(seed)
        saliency = {
            (i, s.spec.name): torch.from_numpy(rng.random(s.spec.units))
            for i, b in enumerate(self.blocks)
            for s in b.sub_blocks
        }
        self.ordering = Ordering.from_saliency(self.blocks, saliency)
        self.space = SearchSpace(tuple(b.spec for b in self.blocks), self.family.outside(self.model.config.to_dict()))
        rows = [
            [s.choices()[(i + j) % len(s.choices())] for j, s in enumerate(b.spec.sub_blocks)]
            for i, b in enumerate(self.blocks)
        ]
        rows[2] = [0] * len(rows[2])
        self.arch: Architecture = self.space.build(rows)

    def checkpoint(self, out: Path) -> Any:
        """The candidate as a checkpoint of its own, loaded again; before the super-network permutes the model."""
        from transformers import AutoModelForCausalLM

        tracenas.register()
        kept = self.ordering.kept(self.blocks, self.arch)
        save_pruned(self.model, None, self.family, self.blocks, kept, out)
        return AutoModelForCausalLM.from_pretrained(out).eval()

    def net(self) -> Supernet:
        return Supernet(self.model, self.blocks, self.ordering)


def batches(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, 257, (4, 24), generator=generator) for _ in range(count)]


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_training_loss_is_the_evaluation_loss(model_type: str) -> None:
    case = Case(model_type)
    (ids,) = batches(1)
    with case.net().realise(case.arch) as model, torch.no_grad():
        assert float(next_token_loss(model, ids)) == pytest.approx(float(next_token_nll(model, ids).mean()), rel=1e-5)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_training_inside_equals_training_the_checkpoint(model_type: str, tmp_path: Path) -> None:
    case = Case(model_type)
    alone = case.checkpoint(tmp_path / "pruned").requires_grad_(True)
    net = case.net()
    before = {name: p.clone() for name, p in net.model.named_parameters()}
    held = batches(9)[-1]

    def loss(model: Any) -> float:
        return float(next_token_nll(model, held).mean())

    with net.realise(case.arch) as model, private_weights(model) as weights:
        inside = short_recovery(model, weights, batches(4), (2, 4), lambda: loss(model), SETTINGS)
    parameters = list(alone.parameters())
    assert sum(p.numel() for p in weights) == sum(p.numel() for p in parameters)
    outside = short_recovery(alone, parameters, batches(4), (2, 4), lambda: loss(alone), SETTINGS)
    assert inside == pytest.approx(outside, rel=1e-3)
    with net.realise(case.arch) as model, torch.no_grad():
        assert abs(loss(model) - inside[4]) > 1e-2  # it did train
    after = dict(net.model.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(p.requires_grad for p in after.values())


def test_tied_embeddings_are_trained_as_one() -> None:
    case = Case("qwen2")
    assert case.model.get_input_embeddings().weight is case.model.get_output_embeddings().weight
    with case.net().realise(case.arch) as model, private_weights(model) as weights:
        assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
        assert len({id(p) for p in weights}) == len(weights)
        assert any(p is model.get_output_embeddings().weight for p in weights)


def test_a_long_run_passes_through_the_short_one() -> None:
    case = Case("llama")
    net = case.net()

    def run(marks: tuple[int, ...]) -> dict[int, float]:
        with net.realise(case.arch) as model, private_weights(model) as weights:
            held = batches(9)[-1]
            measure = lambda: float(next_token_nll(model, held).mean())  # noqa: E731
            return short_recovery(model, weights, batches(6), marks, measure, SETTINGS)

    assert run((3, 6))[3] == run((3,))[3]
    with pytest.raises(ValueError, match="6 batches for 7 steps"):
        run((7,))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_shared_lora_is_a_cut_of_merged_weights(model_type: str) -> None:
    """A candidate with adapters equals the candidate of the model whose weights are W + (α/r) B A."""
    case = Case(model_type)
    net = case.net()
    lora = SharedLora(net, 3, alpha=6, seed=0)
    (ids,) = batches(1)
    with net.realise(case.arch) as model, lora.attached(case.arch), torch.no_grad():
        untouched = next_token_nll(model, ids)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in lora.parameters:
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
        with net.realise(case.arch) as model:
            plain = next_token_nll(model, ids)
            with lora.attached(case.arch):
                adapted = next_token_nll(model, ids)
        for (key, path), (down, up) in lora._pairs.items():
            projection = next(p for s in net.blocks[key[0]].sub_blocks for p in s.projections if p.path == path)
            net.weight(key, projection).add_(2.0 * up @ down)
        with net.realise(case.arch) as model:
            merged = next_token_nll(model, ids)
    assert torch.equal(untouched, plain)
    assert (adapted - plain).abs().max() > 0.1
    torch.testing.assert_close(adapted, merged, rtol=1e-4, atol=1e-4)


def test_once_for_all_tuning_helps_every_candidate_and_leaves_the_base() -> None:
    case = Case("llama")
    net = case.net()
    lora = SharedLora(net, 4, alpha=8, seed=0)
    before = {name: p.clone() for name, p in net.model.named_parameters()}
    (ids,) = batches(1)

    def loss(arch: Architecture) -> float:
        with net.realise(arch) as model, lora.attached(arch), torch.no_grad():
            return float(next_token_nll(model, ids).mean())

    pool = [case.space.base, case.arch, case.space.smallest]
    start = [loss(arch) for arch in pool]
    tune_once_for_all(net, lora, [ids] * 12, 12, lambda: pool, SETTINGS)
    assert all(loss(arch) < first - 0.1 for arch, first in zip(pool, start, strict=True))
    assert all(torch.equal(before[name], p) for name, p in net.model.named_parameters())
    again = SharedLora(net, 4, alpha=8, seed=1)
    again.load(lora.state())
    assert all(torch.equal(a, b) for a, b in zip(again.parameters, lora.parameters, strict=True))
