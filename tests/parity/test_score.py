"""The central parity: prefix views score what masked dense autograd scores; low-rank traces are peft's."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from masked_reference import MaskedGradients, masks
from tiny import logits_of, tiny_model

from tracenas.demo import model_path
from tracenas.families import Options, config_family
from tracenas.models.functionals.loss import next_token_nll
from tracenas.models.surgery.ordering import Ordering
from tracenas.models.surgery.supernet import Supernet
from tracenas.proxies import PROXIES, Measurement, Proxy
from tracenas.proxies.trace import TraceRecorder, base_subspace
from tracenas.saliency.wanda import saliency
from tracenas.scoring.evaluator import Evaluator, ScoringSettings
from tracenas.space.architecture import Architecture
from tracenas.space.search_space import SearchSpace

pytestmark = pytest.mark.parity

SHARED = Path(__file__).parents[2].parent / "shared" / "models"
CASES = ["llama-gqa", "llama-mha", "mistral", "qwen2", "qwen3"]
TOLERANCE = 1e-5


class Setup:
    """A dense model, its super-network and its masked reference."""

    def __init__(self, model: Any, reference: Any, tokens: torch.Tensor, *, rank: int = 0, **options: Any) -> None:
        config = json.loads(model.config.to_json_string())
        self.family = config_family(config)
        self.blocks = self.family.blocks(config, Options(**options))
        self.tokens = tokens
        self.reference = reference
        per_unit, self.importance = saliency(model, self.blocks, tokens, 2)
        self.ordering = Ordering.from_saliency(self.blocks, per_unit)
        self.logits_before = logits_of(model, tokens)
        self.net = Supernet(model, self.blocks, self.ordering)
        self.space = SearchSpace(tuple(b.spec for b in self.blocks), self.family.outside(config), None, "sublayer")
        settings = ScoringSettings(rank=rank, seed=3, micro_batch=2)
        self.evaluator = Evaluator(self.net, self.space, tokens, PROXIES.get("phi"), settings)

    def architectures(self, count: int) -> Iterator[Architecture]:
        """Random ones, the base, and one with the first block skipped."""
        rng = np.random.default_rng(0)
        yield self.space.base
        counts = self.space.counts(self.space.base)
        counts[0] = [0] * len(counts[0])
        yield self.space.build(counts)
        for _ in range(count - 2):
            arch = self.space.sample(rng)
            assert arch is not None
            yield self.space.mutate(arch, rng, depth=1.0, width=0.0)

    def dense(
        self, arch: Architecture, *, subspace_seed: int | None = None, rank: int = 0
    ) -> tuple[float, dict[Any, np.ndarray]]:
        """Loss and, per sub-block, the flat dense gradient through the masks, projected by A if asked."""
        kept = self.ordering.kept(self.blocks, arch)
        loss, gradients = MaskedGradients(self.reference, self.blocks)(self.tokens, kept)
        out: dict[Any, np.ndarray] = {}
        for i, block in enumerate(self.blocks):
            for sub in block.sub_blocks:
                parts = []
                for p in sub.projections:
                    g = gradients.get((i, sub.spec.name, p.path))
                    if g is None:
                        continue
                    if subspace_seed is not None:
                        ids = kept[i, sub.spec.name]
                        assert ids is not None
                        columns = masks(p, sub.spec.units, ids)[1]
                        g = g @ (base_subspace(subspace_seed, i, p, rank) * columns[..., None, :]).mT
                    parts.append(g.flatten().double())
                if parts:
                    out[i, sub.spec.name] = torch.cat(parts).numpy()
        return loss, out


def tiny_setup(case: str, **kwargs: Any) -> Setup:
    family, _, kind = case.partition("-")
    changes = {"num_key_value_heads": 4} if kind == "mha" else {}
    tokens = torch.randint(1, 257, (4, 24), generator=torch.Generator().manual_seed(0))
    return Setup(tiny_model(family, **changes), tiny_model(family, **changes), tokens, **kwargs)


@pytest.fixture(scope="module", params=CASES)
def setup(request: pytest.FixtureRequest) -> Setup:
    return tiny_setup(request.param)


def close(ours: float, theirs: float) -> bool:
    """Relative or absolute 1e-5, whichever is larger (decision 4)."""
    return abs(ours - theirs) <= TOLERANCE * max(1.0, abs(theirs))


def check_parity(setup: Setup, count: int, *, tolerance: float = 1.0) -> None:
    _, base = setup.dense(setup.space.base)
    for arch in setup.architectures(count):
        score = setup.evaluator.score(arch)
        assert score.reason is None
        loss, gradients = setup.dense(arch)
        phi = 0.0
        for (i, name), g in gradients.items():
            rho = float(np.corrcoef(g, base[i, name])[0, 1])
            assert abs(score.extra["rho"][name][i] - rho) <= tolerance * TOLERANCE
            kept = next(
                k
                for s, (_, k) in zip(setup.blocks[i].sub_blocks, arch.layers[i].kept, strict=True)
                if s.spec.name == name
            )
            units = next(s.spec.units for s in setup.blocks[i].sub_blocks if s.spec.name == name)
            phi += kept / units * rho
        active = {(i, n) for n, row in score.extra["rho"].items() for i, v in enumerate(row) if v is not None}
        assert active == set(gradients)
        assert score.loss is not None
        assert close(score.loss, loss)
        assert close(score.score, phi)


def test_permuting_the_units_preserves_the_function(setup: Setup) -> None:
    difference = (setup.net.model(setup.tokens).logits - setup.logits_before).abs().max()
    assert difference <= 1e-5 * max(1.0, float(setup.logits_before.abs().max()))


def test_scores_equal_masked_dense_autograd(setup: Setup) -> None:
    check_parity(setup, 10)


def test_phi_of_the_base_is_twice_the_depth(setup: Setup) -> None:
    assert setup.evaluator.score(setup.space.base).score == pytest.approx(2 * len(setup.blocks), abs=1e-9)


@pytest.mark.parametrize("kv_groups", [False, True])
def test_whole_kv_groups(kv_groups: bool) -> None:
    setup = tiny_setup("llama-gqa", kv_groups=kv_groups)
    assert setup.space.layers[0].sub_blocks[0].unit == ("kv_heads" if kv_groups else "heads")
    check_parity(setup, 6)


def test_micro_batches_do_not_change_the_score() -> None:
    one, many = tiny_setup("llama-gqa"), tiny_setup("llama-gqa")
    many.evaluator = Evaluator(many.net, many.space, many.tokens, PROXIES.get("phi"), ScoringSettings(0, 3, 4))
    for a, b in zip(one.architectures(4), many.architectures(4), strict=True):
        assert close(one.evaluator.score(a).score, many.evaluator.score(b).score)


def check_projected_gradients(setup: Setup, count: int) -> None:
    """ρ of traces of rank 5 equals that of the dense model's gradients, projected."""
    _, base = setup.dense(setup.space.base, subspace_seed=3, rank=5)
    for arch in setup.architectures(count):
        score = setup.evaluator.score(arch)
        _, gradients = setup.dense(arch, subspace_seed=3, rank=5)
        for (i, name), g in gradients.items():
            rho = float(np.corrcoef(g, base[i, name])[0, 1])
            assert abs(score.extra["rho"][name][i] - rho) <= TOLERANCE


def test_low_rank_traces_equal_the_projected_dense_gradients() -> None:
    check_projected_gradients(tiny_setup("qwen2", rank=5), 6)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks for the old name
def test_low_rank_traces_equal_peft_gradients() -> None:
    """LoRA with B = 0 and the same A, through peft: ∂L/∂B is the trace."""
    from peft import LoraConfig, get_peft_model

    setup = tiny_setup("llama-gqa", rank=4)
    rng = np.random.default_rng(5)
    for arch in (setup.space.base, setup.space.sample(rng)):
        assert arch is not None
        if any(k == 0 for layer in arch.layers for _, k in layer.kept):
            counts = [
                [k or s.choices()[0] for k, s in zip(row, lay.sub_blocks, strict=True)]
                for row, lay in zip(setup.space.counts(arch), setup.space.layers, strict=True)
            ]
            arch = setup.space.build(counts)
        kept = setup.ordering.kept(setup.blocks, arch)
        model = tiny_model("llama")
        for i, block in enumerate(setup.blocks):
            for sub in block.sub_blocks:
                for p in sub.projections:
                    ids = kept[i, sub.spec.name]
                    assert ids is not None
                    rows, columns = masks(p, sub.spec.units, ids)
                    module = model.get_submodule(f"{block.path}.{p.path}")
                    module.weight.mul_(rows[:, None] * columns)
                    module.bias.mul_(rows)
        names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=4, target_modules=names, init_lora_weights=True))
        for i, block in enumerate(setup.blocks):
            for sub in block.sub_blocks:
                for p in sub.projections:
                    ids = kept[i, sub.spec.name]
                    assert ids is not None
                    a = base_subspace(3, i, p, 4) * masks(p, sub.spec.units, ids)[1]
                    adapted.base_model.model.get_submodule(f"{block.path}.{p.path}").lora_A[
                        "default"
                    ].weight.data.copy_(a)
        adapted(input_ids=setup.tokens, labels=setup.tokens).loss.backward()
        recorder = TraceRecorder(setup.net, 4, 3)
        with setup.net.realise(arch) as realised, recorder.record(arch) as trace, torch.enable_grad():
            next_token_nll(realised, setup.tokens).mean().backward()
        for i, block in enumerate(setup.blocks):
            for sub in block.sub_blocks:
                for p in sub.projections:
                    ids = kept[i, sub.spec.name]
                    assert ids is not None
                    module = adapted.base_model.model.get_submodule(f"{block.path}.{p.path}")
                    theirs = module.lora_B["default"].weight.grad * masks(p, sub.spec.units, ids)[0][:, None]
                    order = setup.ordering.ranking[i, sub.spec.name]
                    ours = torch.zeros(p.rows, 4)
                    owner = p.unit_ids(0, sub.spec.units)
                    positions = _positions(owner, order, sub.groups, len(ids))
                    ours[positions] = trace.parts[i, p.path]
                    assert torch.allclose(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE)


def _positions(owner: np.ndarray, ranking: np.ndarray, groups: int, kept: int) -> list[int]:
    """Base row of every row of a candidate's trace: ranks in order, fixed rows where they are."""
    if (owner < 0).all():
        return list(range(len(owner)))
    rows_of = {unit: np.flatnonzero(owner == unit) for unit in set(owner.tolist())}
    stays = ranking.reshape(groups, -1)[:, : kept // groups].reshape(-1)
    return [int(r) for unit in stays for r in rows_of[int(unit)]]


def test_base_weights_are_untouched_by_evaluations_and_by_exceptions() -> None:
    setup = tiny_setup("qwen3", rank=4)
    before = {n: p.clone() for n, p in setup.net.model.named_parameters()}
    modules = dict(setup.net.model.named_modules())
    for arch in setup.architectures(12):
        setup.evaluator.score(arch)
    with suppress(RuntimeError), setup.net.realise(next(setup.architectures(3))):
        raise RuntimeError
    after = dict(setup.net.model.named_parameters())
    assert set(after) == set(before)
    assert all(torch.equal(p, after[n]) for n, p in before.items())
    assert all(not p.requires_grad and p.grad is None for p in after.values())
    assert dict(setup.net.model.named_modules()) == modules
    assert (setup.net.model(setup.tokens).logits - setup.logits_before).abs().max() < 1e-4


def test_a_failing_candidate_costs_that_candidate_only() -> None:
    setup = tiny_setup("llama-gqa")
    arch = setup.space.base
    good = setup.evaluator.score(arch)
    wide = setup.space.build([[8, 96]] * 4)  # more heads than there are
    failed = setup.evaluator.score(wide)
    assert not failed.ok
    assert failed.reason
    assert setup.evaluator.score(arch).score == good.score


def test_a_score_that_is_not_finite_fails_with_a_reason() -> None:
    setup = tiny_setup("llama-gqa")

    def nan(_: Measurement) -> float:
        return float("nan")

    evaluator = Evaluator(setup.net, setup.space, setup.tokens, Proxy("nan", nan), ScoringSettings(0, 0, 2))
    score = evaluator.score(setup.space.base)
    assert not score.ok
    assert score.reason == "loss or score is not finite"


def test_a_proxy_without_a_trace_runs_no_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = tiny_setup("llama-gqa")
    evaluator = Evaluator(setup.net, setup.space, setup.tokens, PROXIES.get("loss"), ScoringSettings(0, 0, 2))

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("backward")

    monkeypatch.setattr(torch.Tensor, "backward", forbidden)
    assert evaluator.score(setup.space.base).score == pytest.approx(-setup.evaluator.base_loss, rel=1e-6)


def test_bf16_scores_are_close_to_fp32() -> None:
    exact = tiny_setup("qwen2", rank=8)
    half = tiny_model("qwen2").to(torch.bfloat16)
    net = Supernet(half, exact.blocks, exact.ordering)
    evaluator = Evaluator(net, exact.space, exact.tokens, PROXIES.get("phi"), ScoringSettings(8, 3, 2))
    for arch in exact.architectures(4):
        score = evaluator.score(arch)
        assert score.reason is None
        assert score.score == pytest.approx(exact.evaluator.score(arch).score, abs=0.3)


@pytest.mark.parametrize("name", ["stories260k", "babyllama", "demo"])
def test_pretrained_models(name: str) -> None:
    from transformers import AutoModelForCausalLM

    path = model_path() if name == "demo" else SHARED / name
    if not path.is_dir():
        pytest.skip(f"{name} is not on this machine")
    model, reference = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval().requires_grad_(False) for _ in range(2)
    )
    tokens = torch.randint(3, model.config.vocab_size, (2, 48), generator=torch.Generator().manual_seed(1))
    check_parity(Setup(model, reference, tokens), 20)
