"""Factors of norms and output projections: in hooks and in tensors, and their training against one without hooks."""

from typing import Any

import numpy as np
import pytest
import torch
from pruned_cases import DECODERS
from tiny import tiny_model
from torch.func import functional_call

from tracenas.families import Options, config_family
from tracenas.models.functionals.loss import next_token_nll
from tracenas.models.surgery.ordering import Ordering
from tracenas.models.surgery.supernet import Realisation, Supernet
from tracenas.pipeline.refit.entries import in_blocks
from tracenas.refits.factors import FactorTraining, factor_places, folded, scaling, train_factors
from tracenas.refits.replaced import ReplacedRealisation
from tracenas.space.architecture import Architecture
from tracenas.space.search_space import SearchSpace

pytestmark = pytest.mark.parity

POST_NORMS = ("gemma2", "gemma3_text", "olmo2")
EXPERTS = ("mixtral", "qwen3_moe")


class Case:
    """A super-network in another order than the model's, a candidate of it, and where that has factors."""

    def __init__(self, model_type: str) -> None:
        model: Any = tiny_model(model_type)
        config = model.config.to_dict()
        family = config_family(config)
        self.blocks = family.blocks(config, Options())
        generator = np.random.default_rng(0)
        units = {
            (i, s.spec.name): torch.from_numpy(generator.random(s.spec.units))
            for i, b in enumerate(self.blocks)
            for s in b.sub_blocks
        }
        self.net = Supernet(model, self.blocks, Ordering.from_saliency(self.blocks, units))
        space = SearchSpace(tuple(b.spec for b in self.blocks), family.outside(config))
        first = self.blocks[0].sub_blocks
        widths = [[s.spec.units for s in b.sub_blocks] for b in self.blocks]
        widths[0] = [s.spec.round(s.spec.units // 2) for s in first]
        widths[1][1] = 0
        widths[2] = [0, 0]
        self.arch: Architecture = space.build(widths)
        self.places = factor_places(self.net, self.arch, family.final_norm)
        self.tokens = torch.randint(1, 257, (4, 24), generator=torch.Generator().manual_seed(1))

    def losses(self, how: Realisation | None, factors: torch.Tensor | None = None) -> torch.Tensor:
        with self.net.realise(self.arch, how) as model:
            if factors is None:
                return next_token_nll(model, self.tokens).double()
            with scaling(model, self.places, factors):
                return next_token_nll(model, self.tokens).double()

    def replaced(self, factors: torch.Tensor) -> ReplacedRealisation:
        with self.net.realise(self.arch) as model:
            return ReplacedRealisation(
                Realisation(), *in_blocks(self.blocks, folded(model, self.places, factors.tolist()))
            )


@pytest.mark.parametrize("model_type", DECODERS)
def test_in_tensors_they_are_what_they_were_in_hooks(model_type: str) -> None:
    case = Case(model_type)
    factors = 0.7 + 0.6 * torch.rand(len(case.places), generator=torch.Generator().manual_seed(2))
    plain, hooked, in_tensors = case.losses(None), case.losses(None, factors), case.losses(case.replaced(factors))
    assert float((hooked - plain).abs().max()) > 1e-2
    torch.testing.assert_close(in_tensors, hooked, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(case.losses(None), plain, rtol=0, atol=0)  # nothing was written


@pytest.mark.parametrize("model_type", DECODERS)
def test_what_has_a_factor(model_type: str) -> None:
    case = Case(model_type)
    prefixes = [f"{block.path}." for block in case.blocks]
    assert len(set(case.places)) == len(case.places)
    assert not any(place.startswith(prefixes[2]) for place in case.places)  # skipped
    attention, mlp = case.blocks[1].sub_blocks
    gone = {prefixes[1] + path for path in (*mlp.norms, mlp.output)} - {prefixes[1] + path for path in attention.norms}
    assert not gone & set(case.places)
    outputs = {prefixes[0] + sub.output for sub in case.blocks[0].sub_blocks}
    expected = 0 if model_type in POST_NORMS else 1 if model_type in EXPERTS else 2
    assert len(outputs & set(case.places)) == expected


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gpt_neox", "qwen3_moe"])
def test_training_is_adam_on_the_tensors_factors(model_type: str) -> None:
    """Against parameters that are multiplied, transformers' own loss, and Adam by hand."""
    case = Case(model_type)
    training = FactorTraining(steps=4, tokens=48)
    found = train_factors(case.net, case.arch, None, case.places, case.tokens, training)
    factors = torch.ones(len(case.places), requires_grad=True)
    mean, square = torch.zeros(len(factors)), torch.zeros(len(factors))
    with case.net.realise(case.arch) as model:
        added = 1.0 if model_type == "gemma2" else 0.0
        parameters = {
            f"{path}.{name}": (place, value, 0.0 if path.endswith("proj") or name == "bias" else added)
            for place, path in enumerate(case.places)
            for name, value in model.get_submodule(path).named_parameters()
        }
        for step in range(training.steps):
            rows = case.tokens[2 * (step % 2) : 2 * (step % 2) + 2]
            scaled = {name: factors[at] * (value + plus) - plus for name, (at, value, plus) in parameters.items()}
            with torch.enable_grad():
                loss = functional_call(model, scaled, kwargs={"input_ids": rows, "labels": rows}, strict=False).loss
                (gradient,) = torch.autograd.grad(loss, factors)
            mean = 0.9 * mean + 0.1 * gradient
            square = 0.999 * square + 0.001 * gradient.square()
            rate = 0.02 * min(1.0, 2 * (4 - step) / 4)
            unbiased = mean / (1 - 0.9 ** (step + 1)), square / (1 - 0.999 ** (step + 1))
            factors = (factors - rate * unbiased[0] / (unbiased[1].sqrt() + 1e-8)).detach().requires_grad_()
    torch.testing.assert_close(found, factors.detach(), rtol=0, atol=2e-3)
    assert float((found - 1).abs().max()) > 0.03
