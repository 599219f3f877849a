"""Blocks that are trained against a plain loop over the written checkpoint, run by transformers, with Adam by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pruned_cases import DECODERS
from tiny import auto_class, capping, tiny_model
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tracenas.errors import UserError
from tracenas.families import Options, config_family
from tracenas.models.checkpoints.writing import save_pruned
from tracenas.models.shipped.heterogeneous import register
from tracenas.models.surgery.ordering import Ordering
from tracenas.models.surgery.supernet import Realisation, Supernet
from tracenas.pipeline.refit.entries import replaced_entries
from tracenas.refits.costs import reconstruction_costs
from tracenas.refits.reconstruction import (
    BlockTraining,
    InMemory,
    TrainedBlock,
    reconstruct_blocks,
)
from tracenas.refits.replaced import ReplacedRealisation
from tracenas.space.architecture import Architecture
from tracenas.space.search_space import SearchSpace

pytestmark = pytest.mark.parity

TRAINING = BlockTraining(steps=5, learning_rate=1e-2, seed=3, drift=0.75)
BATCH = 2
EXPERTS = ("mixtral", "qwen3_moe")
"""Their products are not of float64."""
SINGLE_NORMS = ("gemma", "gemma2", "gemma3_text", "olmo2")
"""Their norms are computed in float32, whatever the model is in."""


def tolerance(model_type: str) -> float:
    """Of weights that have moved by up to 0.045."""
    return 2e-3 if model_type in EXPERTS else 5e-5 if model_type in SINGLE_NORMS else 1e-9


class Trained:
    """A dense model, a heterogeneous candidate of it, and the candidate's checkpoint."""

    def __init__(self, model_type: str, out: Path, dtype: torch.dtype | None = None) -> None:
        dtype = dtype or (torch.float32 if model_type in EXPERTS else torch.float64)
        self.dense = tiny_model(model_type).to(dtype)
        permuted = tiny_model(model_type).to(dtype)
        config = json.loads(self.dense.config.to_json_string())
        self.family = config_family(config)
        self.blocks = self.family.blocks(config, Options())
        rng = np.random.default_rng(0)
        units = {
            (i, s.spec.name): torch.from_numpy(rng.random(s.spec.units))
            for i, b in enumerate(self.blocks)
            for s in b.sub_blocks
        }
        ordering = Ordering.from_saliency(self.blocks, units)
        self.net = Supernet(permuted, self.blocks, ordering)
        space = SearchSpace(tuple(b.spec for b in self.blocks), self.family.outside(config))
        first, last = (b.sub_blocks for b in (self.blocks[0], self.blocks[3]))
        widths = [
            [first[0].spec.round(first[0].spec.units // 2), first[1].spec.round(2 * first[1].spec.units // 3)],
            [self.blocks[1].sub_blocks[0].spec.units, 0],
            [0, 0],
            [last[0].spec.round(last[0].spec.units // 2), last[1].spec.units],
        ]
        self.base, self.arch = space.base, space.build(widths)
        draft = save_pruned(self.dense, None, self.family, self.blocks, ordering.kept(self.blocks, self.arch), out)
        register(model_type)
        self.student = capping(auto_class(model_type).from_pretrained(draft.path, dtype=dtype)).eval()
        generator = torch.Generator().manual_seed(1)
        self.tokens, self.held_out = (torch.randint(1, 257, (n, 12), generator=generator) for n in (6, 4))

    def layers(self, model: Any) -> Any:
        path = self.blocks[0].path.rpartition(".")[0]
        return model.get_submodule(path)


class Feed:
    """Runs one layer inside the whole model: what enters it is given, what leaves it is seen."""

    def __init__(self, model: Any, layer: Any) -> None:
        self.model, self.layer = model, layer

    def __call__(self, tokens: Tensor, given: Tensor | None) -> tuple[Tensor, Tensor]:
        seen: list[Tensor] = []

        def enter(_: Any, args: Any) -> Any:
            seen.append(args[0] if given is None else given)
            return (seen[0], *args[1:])

        def leave(_: Any, __: Any, output: Any) -> None:
            seen.append(output[0] if isinstance(output, tuple) else output)

        handles = [self.layer.register_forward_pre_hook(enter), self.layer.register_forward_hook(leave)]
        self.model(tokens)
        for handle in handles:
            handle.remove()
        return seen[0], seen[1]


def error(output: Tensor, target: Tensor, dense: Tensor) -> Tensor:
    return (((output - target) ** 2).sum(-1) / (dense**2).sum(-1)).mean()


def plain_loop(case: Trained, index: int, place: int, pruned: list[Tensor]) -> None:
    """Train one layer of the student in place."""
    layer = case.layers(case.student)[place]
    teacher, student = Feed(case.dense, case.layers(case.dense)[index]), Feed(case.student, layer)
    batches = case.tokens.split(BATCH)
    order = np.random.default_rng([3, 0x424C4B, index])
    epochs = np.concatenate([order.permutation(3), order.permutation(3)])
    parameters = list(layer.parameters())
    first, second = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    for step, rate in enumerate((1e-2, 1e-2, 1e-2, 1e-2, 5e-3), start=1):
        at = epochs[step - 1]
        with torch.no_grad():
            before, dense = teacher(batches[at], None)
        for parameter in parameters:
            parameter.requires_grad_(True).grad = None
        loss = error(student(batches[at], pruned[at])[1], dense - 0.25 * (before - pruned[at]), dense)
        gradients = torch.autograd.grad(loss, parameters)
        norm = torch.sqrt(sum((g**2).sum() for g in gradients))
        with torch.no_grad():
            for p, g, m, v in zip(parameters, gradients, first, second, strict=True):
                g = g * min(1.0, 1.0 / (float(norm) + 1e-6))
                m.mul_(0.9).add_(0.1 * g)
                v.mul_(0.95).add_(0.05 * g * g)
                p -= rate * (m / (1 - 0.9**step)) / ((v / (1 - 0.95**step)).sqrt() + 1e-8)
    layer.requires_grad_(False)


@pytest.mark.parametrize("model_type", DECODERS)
def test_blocks_are_those_of_a_plain_loop(model_type: str, tmp_path: Path) -> None:
    case = Trained(model_type, tmp_path / "out")
    found = reconstruct_blocks(case.net, case.arch, Realisation(), case.tokens, case.held_out, BATCH, TRAINING)
    assert list(found) == [0, 1, 3]
    batches = case.tokens.split(BATCH)
    with torch.no_grad():
        pruned = [Feed(case.student, case.layers(case.student)[0])(batch, None)[0] for batch in batches]
    entries = replaced_entries(case.net, case.arch, {index: block.tensors for index, block in found.items()}, {})
    trained = 0
    for place, index in enumerate(found):
        layer = case.layers(case.student)[place]
        before = {name: parameter.clone() for name, parameter in layer.named_parameters()}
        plain_loop(case, index, place, pruned)
        if found[index].kept:
            trained += 1
            assert {f"{case.blocks[index].path}.{name}" for name in before} == {
                name for name in entries if name.startswith(f"{case.blocks[index].path}.")
            }
            for name, parameter in layer.named_parameters():
                made = entries[f"{case.blocks[index].path}.{name}"].make()
                torch.testing.assert_close(made, parameter.detach(), rtol=0, atol=tolerance(model_type))
                assert not torch.equal(made, before[name])
        else:
            for name, parameter in layer.named_parameters():
                parameter.data.copy_(before[name])
        with torch.no_grad():
            pruned = [Feed(case.student, layer)(b, p)[1] for b, p in zip(batches, pruned, strict=True)]
    assert trained


@pytest.mark.parametrize("model_type", ["llama", "olmo2", "mixtral"])
def test_errors_are_those_of_the_held_out_text(model_type: str, tmp_path: Path) -> None:
    """Of the first block as it was cut, by the student itself."""
    case = Trained(model_type, tmp_path / "out")
    found = reconstruct_blocks(case.net, case.arch, Realisation(), case.tokens, case.held_out, BATCH, TRAINING)
    with torch.no_grad():
        _, dense = Feed(case.dense, case.layers(case.dense)[0])(case.held_out, None)
        _, output = Feed(case.student, case.layers(case.student)[0])(case.held_out, None)
    assert found[0].before == pytest.approx(float(error(output, dense, dense)), rel=1e-5)


def test_what_is_worse_on_held_out_text_is_not_kept(tmp_path: Path) -> None:
    case = Trained("llama", tmp_path / "out")
    wild = BlockTraining(steps=3, learning_rate=30.0, seed=0)
    found = reconstruct_blocks(case.net, case.arch, Realisation(), case.tokens, case.held_out, BATCH, wild)
    assert all(not block.kept and not block.tensors and not block.after < block.before for block in found.values())
    with case.net.realise(case.arch) as model:
        plain = model(case.tokens).logits
    trained = ReplacedRealisation(Realisation(), {index: block.tensors for index, block in found.items()})
    with case.net.realise(case.arch, trained) as model:
        assert torch.equal(model(case.tokens).logits, plain)


def test_trained_candidates_leave_the_base_as_it_is(tmp_path: Path) -> None:
    case = Trained("qwen2", tmp_path / "out")
    before = {name: tensor.clone() for name, tensor in case.net.model.state_dict().items()}
    found = reconstruct_blocks(case.net, case.arch, Realisation(), case.tokens, case.held_out, BATCH, TRAINING)
    assert any(block.kept for block in found.values())
    after = case.net.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert not any(parameter.requires_grad for parameter in case.net.model.parameters())


@pytest.mark.parametrize(
    ("model_type", "dtype"), [*((name, torch.bfloat16) for name in DECODERS), ("llama", torch.float16)]
)
def test_half_precision_trains_in_single(model_type: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """In two bytes steps as small as these would be lost; tensors come back in the model's dtype."""
    case = Trained(model_type, tmp_path / "out", dtype)
    training = BlockTraining(steps=20, learning_rate=2e-3, seed=0)
    found = reconstruct_blocks(case.net, case.arch, Realisation(), case.tokens, case.tokens, BATCH, training)
    kept = [block for block in found.values() if block.kept]
    assert kept and all(t.dtype is dtype for block in kept for t in block.tensors.values())
    assert found[0].after < found[0].before


def test_nothing_is_trained_where_nothing_is_lacking(tmp_path: Path) -> None:
    case = Trained("llama", tmp_path / "out")
    arch = Architecture((*case.base.layers[:2], *case.arch.layers[2:]))
    found = reconstruct_blocks(case.net, arch, Realisation(), case.tokens, case.held_out, BATCH, TRAINING)
    assert [(found[i].steps, found[i].before, found[i].kept) for i in (0, 1)] == [(0, 0.0, False)] * 2
    assert found[3].steps == TRAINING.steps


def test_finished_blocks_are_not_trained_again(tmp_path: Path) -> None:
    case = Trained("llama", tmp_path / "out")
    whole = InMemory()
    reconstruct_blocks(case.net, case.arch, Realisation(), case.tokens, case.held_out, BATCH, TRAINING, finished=whole)

    made: list[int] = []

    class Noting(InMemory):
        def put(self, block: TrainedBlock) -> TrainedBlock:
            made.append(block.index)
            return super().put(block)

    begun = Noting({0: whole[0]})
    again = reconstruct_blocks(
        case.net, case.arch, Realisation(), case.tokens, case.held_out, BATCH, TRAINING, finished=begun
    )
    assert made == [1, 3]
    for index, block in whole.items():
        assert block.to_json() == again[index].to_json()
        assert all(torch.equal(tensor, again[index].tensors[name]) for name, tensor in block.tensors.items())


def test_steps_and_seed_decide(tmp_path: Path) -> None:
    case = Trained("llama", tmp_path / "out")

    def tensors(seed: int) -> Tensor:
        training = BlockTraining(steps=2, learning_rate=1e-2, seed=seed)
        found = reconstruct_blocks(case.net, case.arch, Realisation(), case.tokens, case.tokens, BATCH, training)
        return found[0].tensors["self_attn.o_proj.weight"]

    assert torch.equal(tensors(0), tensors(0)) and not torch.equal(tensors(0), tensors(2))


def test_costs_are_the_products_that_torch_counts(tmp_path: Path) -> None:
    case = Trained("llama", tmp_path / "out")
    texts = case.tokens, case.held_out
    with FlopCounterMode(display=False) as counter:
        reconstruct_blocks(case.net, case.arch, Realisation(), *texts, BATCH, TRAINING)
    counted = {str(name): count for name, count in counter.get_flop_counts()["Global"].items()}
    products = sum(count for name, count in counted.items() if name in ("aten.mm", "aten.addmm"))
    trained = TRAINING.steps * BATCH * case.tokens.shape[1]
    tokens, held_out = (text.numel() for text in texts)
    passes, training = reconstruction_costs(case.blocks, case.arch, tokens=tokens, held_out=held_out, trained=trained)
    assert passes + training == products


def test_activations_must_be_finite(tmp_path: Path) -> None:
    case = Trained("llama", tmp_path / "out")
    with torch.no_grad():
        case.net.model.model.layers[1].self_attn.o_proj.weight.fill_(float("inf"))
    with pytest.raises(UserError, match="block 1: the activations are not finite"):
        reconstruct_blocks(case.net, case.arch, Realisation(), case.tokens, case.held_out, BATCH, TRAINING)
