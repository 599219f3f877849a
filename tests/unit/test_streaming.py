"""Blocks that are copied to a device one after the other: what is there at a time, and that nothing mixes the two."""

import gc
import weakref
from typing import Any

import pytest
import torch
from fake_device import GPU, LLAMA_8B, LLAMA_70B, Large, host_and_gpu
from torch import nn

from tracenas.models.functionals.perplexity import window_losses
from tracenas.models.surgery.streaming import StreamedBlocks, resident, stream_blocks
from tracenas.proxies import PROXIES
from tracenas.refits.aim import Aim
from tracenas.refits.factors import FactorTraining, factor_places, train_factors
from tracenas.refits.gram import gram_matrices
from tracenas.refits.realisation import CompensatedRealisation
from tracenas.refits.reconstruction import BlockTraining, reconstruct_blocks
from tracenas.refits.ridge import FittedRealisation, ridge_outputs
from tracenas.refits.sequential import SequentialFit
from tracenas.saliency import SALIENCIES
from tracenas.saliency.sensitivity.fisher import fisher_matrices
from tracenas.saliency.sensitivity.moments import input_moments
from tracenas.scoring.block_major import BlockMajorScorer
from tracenas.scoring.device_peaks import peaks
from tracenas.scoring.evaluator import Evaluator, ScoringSettings
from tracenas.scoring.raced import RacingEvaluator
from tracenas.scoring.workload import Shape

LENGTH = 4096
RIDGE = 0.01
SMALL = {
    **{"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 16},
    "vocab_size": 128,
}


def counted(large: Large, *, measured: bool) -> int:
    """Bytes on the device, as a limit is held against."""
    shape = Shape(1, LENGTH, 1, None, 2, "cuda")
    return peaks(large.blocks, large.space, large.vocabulary, large.hidden, shape, cuts=True, measured=measured)[1]


@pytest.mark.parametrize(
    ("shape", "limit"), [(LLAMA_8B, 17), pytest.param(LLAMA_70B, 20, marks=pytest.mark.slow)], ids=["8b", "70b"]
)
def test_refitted_candidates_take_less_than_the_limit(shape: dict[str, int], limit: int) -> None:
    """Three blocks: more of them wait, and are on the device one after the other all the same."""
    large = Large(shape, layers=3, share=0.85)
    arch = large.space.uniform()
    assert arch is not None
    with host_and_gpu() as alive:
        net, tokens = large.supernet(GPU), large.tokens(2, LENGTH).to(GPU)
        how = CompensatedRealisation(net, gram_matrices(net.model, net.blocks, tokens, 1), RIDGE, memo_bytes=1 << 26)
        statistics = alive.peak
        alive.begin()
        evaluator = Evaluator(net, large.space, tokens, PROXIES.get("loss_compensated"), ScoringSettings(0, 0, 1), how)
        scores = list(BlockMajorScorer(RacingEvaluator(evaluator, 1), waiting=1 << 40)([arch, large.space.base]))
        assert evaluator.score(arch).ok
    assert all(score.ok for score in scores)
    figure = counted(large, measured=False)
    assert 0.6 * figure < alive.peak <= figure <= limit * 2**30
    assert statistics <= counted(large, measured=True)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [LLAMA_8B, LLAMA_70B], ids=["8b", "70b"])
def test_statistics_and_refits_of_pruning_take_less_than_the_limit(shape: dict[str, int]) -> None:
    large = Large(shape, layers=3, share=0.85)
    arch = large.space.uniform()
    assert arch is not None
    with host_and_gpu() as alive:
        net, tokens = large.supernet(GPU), large.tokens(2, LENGTH).to(GPU)
        ridge_outputs(net, arch, gram_matrices(net.model, net.blocks, tokens, 1), [RIDGE, 0.1])
        SequentialFit(net, arch, tokens, 1, [Aim(RIDGE, 0.5)]).advance()
        net.restore()
        for _ in fisher_matrices(net.model, net.blocks, tokens, 1, torch.Generator()):
            pass
        for _ in input_moments(net.model, net.blocks, tokens, 1):
            pass
    assert alive.peak <= counted(large, measured=True)


def test_nothing_mixes_a_weight_that_waits_with_what_is_on_the_device() -> None:
    large = Large(SMALL, share=0.8)
    arch = large.space.uniform()
    assert arch is not None
    with host_and_gpu():
        net, tokens = large.supernet(GPU), large.tokens(4, 32).to(GPU)
        fitted = ridge_outputs(net, arch, gram_matrices(net.model, net.blocks, tokens, 2), [RIDGE])[RIDGE]
        aims = [Aim(RIDGE, 0.5), Aim(RIDGE, 0.0)]
        sequential = SequentialFit(net, arch, tokens, 2, aims).advance()
        for outputs in (fitted, *sequential.values()):
            with net.realise(arch, FittedRealisation(outputs)) as model:
                window_losses(model, tokens)
        for name in ("phi", "kl", "grad_norm", "loss"):
            settings = ScoringSettings(4, 0, 2)
            assert Evaluator(net, large.space, tokens, PROXIES.get(name), settings).score(arch).ok, name
        places = factor_places(net, arch, "model.norm")
        train_factors(net, arch, None, places, tokens, FactorTraining(1, 32))
        training = BlockTraining(1, 1e-3, 0)
        reconstruct_blocks(net, arch, FittedRealisation(fitted), tokens, tokens, 2, training)
        net.restore()
        for name in ("taylor", "magnitude"):
            SALIENCIES.get(name)(net.model, net.blocks, tokens, 2)
        assert len(list(fisher_matrices(net.model, net.blocks, tokens, 2, torch.Generator()))) == 6
        assert len(list(input_moments(net.model, net.blocks, tokens, 2))) == 6


class Block(nn.Module):
    """A linear layer as a block."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer."""
        out: torch.Tensor = self.linear(x)
        return out


class Model(nn.Module):
    """Something outside the blocks, and three of them."""

    def __init__(self) -> None:
        super().__init__()
        self.outside = nn.Linear(4, 4)
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One after the other."""
        x = self.outside(x)
        for block in self.blocks:
            x = block(x)
        return x


PATHS = [f"blocks.{i}" for i in range(3)]


@pytest.fixture
def model() -> Any:
    made: Any = Model().requires_grad_(False)
    stream_blocks(made, PATHS, torch.device("cpu"), ahead=True)
    return made


def test_no_more_than_two_blocks_are_there_between_passes(model: Any) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []
    for _ in range(3):
        for index, block in enumerate(model.blocks):
            with resident(model, PATHS[index]):
                alive.append(weakref.ref(block.linear.weight))
            gc.collect()
            assert sum(ref() is not None for ref in alive) <= 1
    assert len({id(block.linear.weight) for block in model.blocks}) == 3


def test_what_is_changed_at_rest_is_copied_again(model: Any) -> None:
    x = torch.ones(1, 4)
    model(x)
    with torch.no_grad():
        model.blocks[2].linear.weight.zero_()  # on the device still, and the first one is there ahead
        model.blocks[2].linear.bias.zero_()
    assert not model(x).any()


def test_a_pass_with_gradients_keeps_no_weights(model: Any) -> None:
    plain = Model().requires_grad_(False)
    plain.load_state_dict(model.state_dict())
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    copies: list[weakref.ref[torch.Tensor]] = []
    for block in model.blocks:
        block.linear.register_forward_pre_hook(lambda m, _: copies.append(weakref.ref(m.weight)))
    out = model(x).sum()
    gc.collect()
    assert sum(ref() is not None for ref in copies) <= 1  # the last one, which stays until another is wanted
    (streamed,) = torch.autograd.grad(out, x)
    (expected,) = torch.autograd.grad(plain(x).sum(), x)
    assert torch.equal(streamed, expected)


def test_a_copy_that_fails_is_the_callers_and_leaves_the_weights_at_rest(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_rest = [block.linear.weight for block in model.blocks]

    def full(*_: Any) -> Any:
        raise RuntimeError("full")

    monkeypatch.setattr(StreamedBlocks, "_copied", full)
    with pytest.raises(RuntimeError, match="full"):
        model(torch.ones(1, 4))
    assert all(weight is block.linear.weight for weight, block in zip(at_rest, model.blocks, strict=True))
