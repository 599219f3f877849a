"""Every registered family: scores equal masked dense autograd, counts equal the materialised model's."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pruned_cases import FIXED_HEADS
from test_score import Setup, check_parity, check_projected_gradients
from tiny import FLAN, angle_flops, auto_class, logits_of, save_tiny, tiny_config, tiny_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, EncoderDecoderCache

import tracenas
from tracenas.families import FAMILIES, Options, config_family
from tracenas.models.checkpoints import loading
from tracenas.models.checkpoints.headers import read_header
from tracenas.models.checkpoints.writing import save_pruned
from tracenas.space.architecture import Architecture
from tracenas.space.costs import flops_per_token, kv_cache_per_token, parameters
from tracenas.space.sub_block import SubBlockSpec

pytestmark = pytest.mark.parity

MHA: dict[str, Any] = {"num_key_value_heads": 4}
MQA: dict[str, Any] = {"num_key_value_heads": 1}
GROUPS: dict[str, Any] = {"kv_groups": True}
# name → family, changes to its tiny configuration, options
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    **{name: (name, {}, {}) for name in FAMILIES},
    **{f"{name}-mha": (name, MHA, {}) for name in FAMILIES if name not in FIXED_HEADS},
    **{f"{name}-mqa": (name, MQA, {}) for name in FAMILIES if name not in FIXED_HEADS},
    **{f"{name}-groups": (name, {}, GROUPS) for name in FAMILIES if name not in FIXED_HEADS},
    "gpt_neox-sequential": ("gpt_neox", {"use_parallel_residual": False}, {}),
    "gpt_neox-unbiased": ("gpt_neox", {"attention_bias": False}, {}),
    "t5-flan": ("t5", FLAN, {}),
}
CONTEXT = 5  # within the sliding windows, where a cache holds every token


def tokens(rows: int = 4, length: int = 20) -> torch.Tensor:
    return torch.randint(1, 257, (rows, length), generator=torch.Generator().manual_seed(0))


def setup_of(case: str, **kwargs: Any) -> Setup:
    family, changes, options = CASES[case]
    models = (tiny_model(family, **changes) for _ in range(2))
    return Setup(*models, tokens(), **options, **kwargs)


def architectures(setup: Setup, count: int) -> Iterator[Architecture]:
    """The base, one with the first block skipped, random ones, and one that lacks a sub-block of either kind."""
    yield from setup.architectures(count - 1)
    base = setup.space.counts(setup.space.base)
    narrow = [s.choices()[0] for s in setup.space.layers[-1].sub_blocks]
    first_only = [base[-2][0], *(0 for _ in base[-2][1:])]
    yield setup.space.build([*base[:-3], [0, *base[-3][1:]], first_only, narrow])


@pytest.fixture(scope="module", autouse=True)
def registered() -> None:
    tracenas.register()


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_scores_equal_masked_dense_autograd(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = setup_of(case)
    before = {n: p.clone() for n, p in setup.reference.named_parameters()}
    permuted = (logits_of(setup.net.model, setup.tokens) - setup.logits_before).abs().max()
    assert permuted <= 1e-5 * max(1.0, float(setup.logits_before.abs().max()))
    assert any(not p.equal(before[n]) for n, p in setup.net.model.named_parameters())  # units did move
    archs = list(architectures(setup, 8))
    monkeypatch.setattr(setup, "architectures", lambda _: iter(archs))
    check_parity(setup, len(archs))
    setup.net.restore()
    for model in (setup.net.model, setup.reference):
        after = dict(model.named_parameters())
        assert set(after) == set(before)
        assert all(p.equal(after[n]) and not after[n].requires_grad for n, p in before.items())


@pytest.mark.parametrize("window", [6, 64], ids=["window-shorter", "window-longer"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in FIXED_HEADS])
def test_fewer_query_heads_on_one_kv_head(name: str, attention: str, window: int) -> None:
    if getattr(tiny_config(name), "sliding_window", None) is None and window == 64:
        pytest.skip("the family has no window")
    models = [tiny_model(name, **MQA, sliding_window=window) for _ in range(2)]
    if attention == "sdpa" and not models[0]._supports_sdpa:
        pytest.skip("the family has no such attention")
    for model in models:
        model.set_attn_implementation(attention)
    setup = Setup(*models, tokens())
    counts = setup.space.counts(setup.space.base)
    arch = setup.space.build([[1, *others] for _, *others in counts])
    score = setup.evaluator.score(arch)
    loss, _ = setup.dense(arch)
    assert score.reason is None and score.loss == pytest.approx(loss, abs=1e-5)


@pytest.mark.parametrize("name", FAMILIES.names())
def test_low_rank_traces_equal_the_projected_dense_gradients(name: str) -> None:
    check_projected_gradients(setup_of(name, rank=5), 3)


@torch.no_grad()
def test_counts_equal_the_materialised_models(case: str, tmp_path: Path) -> None:
    setup = setup_of(case)
    config = setup.reference.config.to_dict()
    outside, head = setup.family.outside(config), setup.family.head_weights(config)
    for number, arch in enumerate(architectures(setup, 4)):
        kept = setup.ordering.kept(setup.blocks, arch)
        out = tmp_path / str(number)
        draft = save_pruned(setup.reference, None, setup.family, setup.blocks, kept, out)
        model = auto_class(CASES[case][0]).from_pretrained(out, attn_implementation="eager").eval()
        if any(sub.stacked for block in setup.blocks for sub in block.sub_blocks):
            model.set_experts_implementation("eager")  # the counter does not know the others' products
        predicted = parameters(setup.space.layers, outside, arch)
        assert predicted == sum(p.numel() for p in model.parameters()) == draft.parameters
        ids = tokens(2, CONTEXT)
        with FlopCounterMode(display=False) as counter:
            found = model(ids, **reading(model, ids), use_cache=True)
        # eager attention multiplies every query with every key: the causal mean over twice the context
        layers = [replace(b, sub_blocks=tuple(map(causal, b.sub_blocks))) for b in setup.space.layers]
        flops = flops_per_token(layers, head, arch, 2 * CONTEXT - 1)
        assert counter.get_total_flops() - angle_flops(counter) == flops * ids.numel()
        assert _cached(found.past_key_values, arch) == kv_cache_per_token(setup.space.layers, arch) * ids.numel()


@pytest.mark.parametrize("name", FAMILIES.names())
def test_a_stock_checkpoint_has_the_familys_own_names(name: str, tmp_path: Path) -> None:
    """`embed_out` for what transformers calls `lm_head` in memory: other tools read these files, too."""
    setup = setup_of(name)
    kept = setup.ordering.kept(setup.blocks, setup.space.base)
    draft = save_pruned(setup.reference, None, setup.family, setup.blocks, kept, tmp_path / "ours")
    assert draft.stock
    setup.reference.save_pretrained(tmp_path / "theirs")
    headers = (read_header(tmp_path / which / "model.safetensors") for which in ("ours", "theirs"))
    ours, theirs = ({name: (t.dtype, t.shape) for name, t in header.items()} for header in headers)
    assert ours == theirs


def reading(model: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """A target as long as the source, for an encoder–decoder."""
    return {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}


def causal(spec: SubBlockSpec) -> SubBlockSpec:
    """Twice the context is what bidirectional attention sees of one."""
    return replace(spec, bidirectional=False)


def _cached(cache: Any, arch: Architecture) -> int:
    """Elements of K and V in all layers that have attention (a stub keeps one number per token)."""
    left = [layer for layer in arch.layers if not layer.skip and layer.stack != "encoder"]
    sides = [cache]
    if isinstance(cache, EncoderDecoderCache):
        sides = [cache.self_attention_cache, cache.cross_attention_cache]
    return sum(
        c.keys.numel() + c.values.numel()
        for which, side in enumerate(sides)
        for c, layer in zip(side.layers, left, strict=True)
        if layer.kept[which][1] > 0
    )


@pytest.mark.parametrize("name", FAMILIES.names())
def test_the_base_is_described_as_it_is(name: str) -> None:
    """Shapes, biases and places of everything in the description, against the model itself."""
    model = tiny_model(name)
    config = json.loads(model.config.to_json_string())
    family = config_family(config)
    blocks = family.blocks(config, Options())
    total = parameters([b.spec for b in blocks], family.outside(config), Architecture(_full(blocks)))
    assert total == sum(p.numel() for p in model.parameters())
    for block in blocks:
        layer = model.get_submodule(block.path)
        for sub in block.sub_blocks:
            assert all(layer.get_submodule(norm).weight.dim() == 1 for norm in sub.norms)
            assert {p.path for p in sub.projections} >= {sub.output}
            assert all(p.path.startswith(sub.module + ".") for p in (*sub.projections, *sub.width_norms))
            for projection in sub.projections:
                path, name = projection.parameter
                module = layer.get_submodule(path)
                stack = (projection.stack,) if projection.stack else ()
                assert getattr(module, name).shape == (*stack, projection.rows, projection.columns)
                assert (getattr(module, "bias", None) is not None) == projection.bias


def _full(blocks: Any) -> Any:
    from tracenas.space.architecture import Layer

    return tuple(Layer(tuple((s.spec.unit, s.spec.units) for s in b.sub_blocks)) for b in blocks)


@pytest.mark.parametrize("name", FAMILIES.names())
def test_what_a_configuration_need_not_say(name: str) -> None:
    """A config.json without `tie_word_embeddings` means what transformers takes it to mean."""
    family = FAMILIES.get(name)
    default, config = AutoConfig.for_model(name), tiny_config(name).to_dict()
    config.pop("tie_word_embeddings", None)
    said = {**config, "tie_word_embeddings": default.tie_word_embeddings}
    assert family.outside(config) == family.outside(said)


@pytest.mark.parametrize("name", FAMILIES.names())
def test_loaded_with_an_attention_that_computes_the_model(name: str, tokenizer: Any, tmp_path: Path) -> None:
    """Where attention scores are soft-capped only eager attention does it (of those on a CPU)."""
    loaded = loading.load(str(save_tiny(tmp_path / name, name, tokenizer)), device="cpu")
    capped = getattr(loaded.model.config, "attn_logit_softcapping", None)
    assert loaded.model.config._attn_implementation == ("eager" if capped else "sdpa")
    eager = auto_class(name).from_pretrained(tmp_path / name, attn_implementation="eager").eval()
    with torch.no_grad():
        assert torch.allclose(logits_of(loaded.model, tokens()), logits_of(eager, tokens()), rtol=1e-5, atol=1e-5)
