"""A pruned checkpoint, reloaded with and without the package, is the masked dense model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pruned_cases import (
    DECODERS,
    FIXED_HEADS,
    HETEROGENEOUS,
    STOCK,
    TINY,
    VARIANTS,
    Case,
    assert_same,
    cut,
    dense_model,
    logits,
    run_alone,
    train_one_step,
)
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, StaticCache

import tracenas
from tracenas.models.checkpoints.checking import check_checkpoint
from tracenas.models.checkpoints.writing import save_pruned
from tracenas.models.shipped import decoder_only
from tracenas.models.shipped.checkpoint_code import CODE_FILE, auto_map
from tracenas.space.architecture import Architecture
from tracenas.space.costs import parameters

pytestmark = pytest.mark.parity


_OFTEN = ("llama", "gemma2")
GENERATING = [
    name
    if name.endswith(("_uniform", "_no_attention_in_layer_0")) or v.of in _OFTEN
    else pytest.param(name, marks=pytest.mark.slow)
    for name, v in VARIANTS.items()
]
"""Caches are laid out by layer: of most families a stock checkpoint and one without an attention go through often."""


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    tracenas.register()
    root = tmp_path_factory.mktemp("checkpoints")
    return {
        name: cut(dense_model(v.of, **v.changes), v.shape, root / name, options=v.options)
        for name, v in VARIANTS.items()
    }


def tokens(batch: int = 2, length: int = 12) -> torch.Tensor:
    """Longer than the sliding windows."""
    return torch.randint(1, 257, (batch, length), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_are_those_of_the_masked_model(name: str, cases: dict[str, Case]) -> None:
    case = cases[name]
    check_checkpoint(case.draft.path)
    expected = logits(case.reference, tokens())
    assert (expected - logits(case.dense, tokens())).abs().max() > 0.1  # the cut is not a small one
    capped = getattr(case.dense.config, "attn_logit_softcapping", None)  # transformers 5.17 calls it supported
    for attention in ("eager", *(["sdpa"] if case.dense._supports_sdpa and not capped else [])):
        model = case.load(attn_implementation=attention)
        assert_same(logits(model, tokens()), expected)
    model.set_attn_implementation("eager")
    assert {m.config._attn_implementation for m in model.modules() if hasattr(m, "config")} == {"eager"}
    assert_same(logits(model, tokens()), expected)


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_are_the_predicted_ones(name: str, cases: dict[str, Case]) -> None:
    case = cases[name]
    outside = case.family.outside(case.dense.config.to_dict())
    predicted = parameters([b.spec for b in case.blocks], outside, Architecture(case.draft.layers))
    assert sum(p.numel() for p in case.load().parameters()) == predicted == case.draft.parameters


@pytest.mark.parametrize("name", VARIANTS)
def test_stock_where_the_family_can_say_it(name: str, cases: dict[str, Case]) -> None:
    draft = cases[name].draft
    config = json.loads((draft.path / "config.json").read_text())
    assert draft.stock == (name in STOCK)
    assert (draft.path / CODE_FILE).exists() != draft.stock
    assert config["model_type"] == ("" if draft.stock else "tracenas_") + VARIANTS[name].of
    assert ("auto_map" in config) != draft.stock
    assert not (draft.stock and {"per_layer_config", "base_model_type", "tracenas_bypass"} & set(config))


@pytest.mark.parametrize("name", GENERATING)
def test_decoding_with_a_cache(name: str, cases: dict[str, Case]) -> None:
    model, ids = cases[name].load(), tokens()
    expected = logits(model, ids)
    cache = None
    for position in range(ids.shape[1]):
        with torch.no_grad():
            step = model(ids[:, position : position + 1], past_key_values=cache, use_cache=True)
        cache = step.past_key_values
        assert cache.get_seq_length() == position + 1
        assert_same(step.logits[:, 0], expected[:, position])
    with torch.no_grad():  # a prefix at once, then the rest at once
        prefix = model(ids[:, :5], use_cache=True)
        rest = model(ids[:, 5:], past_key_values=prefix.past_key_values, use_cache=True)
    assert_same(rest.logits, expected[:, 5:])


@pytest.mark.parametrize("name", GENERATING)
def test_left_padding(name: str, cases: dict[str, Case]) -> None:
    model, ids = cases[name].load(), tokens()
    short = ids[1:, 4:]
    batch = torch.cat([ids[:1], torch.cat([torch.zeros(1, 4, dtype=torch.long), short], dim=1)])
    mask = torch.ones_like(batch)
    mask[1, :4] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    padded = logits(model, batch, attention_mask=mask, position_ids=positions)
    assert_same(padded[:1], logits(model, ids[:1]))
    assert_same(padded[1:, 4:], logits(model, short))
    together = model.generate(batch, attention_mask=mask, max_new_tokens=5, do_sample=False, eos_token_id=None)
    alone = model.generate(short, attention_mask=mask[1:, 4:], max_new_tokens=5, do_sample=False, eos_token_id=None)
    assert together[1, 4:].tolist() == alone[0].tolist()


@pytest.mark.parametrize("name", GENERATING)
def test_generation_is_greedy_decoding(name: str, cases: dict[str, Case]) -> None:
    model, ids = cases[name].load(), tokens(batch=1, length=7)
    expected = ids
    for _ in range(6):
        expected = torch.cat([expected, logits(model, expected)[:, -1:].argmax(-1)], dim=1)
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    mask = torch.ones_like(ids)
    assert model.generate(ids, attention_mask=mask, **options).tolist() == expected.tolist()
    static = model.generate(ids, attention_mask=mask, cache_implementation="static", disable_compile=True, **options)
    assert static.tolist() == expected.tolist()


def test_a_cache_laid_out_before_the_first_token(cases: dict[str, Case]) -> None:
    """As transformers does for chunked prefill: every layer's slot has its heads before anything is in it."""
    model, ids = cases["llama_no_attention_in_layer_0"].load(), tokens()
    config = model.config
    cache = StaticCache(config=config, max_cache_len=16)
    heads = [layer.num_key_value_heads for layer in config.per_layer_config]
    cache.early_initialization(len(ids), heads, config.head_dim, torch.float32, torch.device("cpu"))
    found = [logits(model, part, past_key_values=cache, use_cache=True) for part in ids.split([4, 1, 7], dim=1)]
    assert_same(torch.cat(found, dim=1), logits(model, ids))


WITHOUT_THE_PACKAGE = """
import json, sys
sys.modules["tracenas"] = None  # any import of it fails
from pathlib import Path
import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForCausalLM
root, again = Path(sys.argv[1]), Path(sys.argv[2])
ids = torch.tensor(json.loads(sys.argv[3]))
found = {}
def loaded(auto, path, remote):  # transformers 5.17 takes torch's attention for Gemma 2 itself, which caps no scores
    model = auto.from_pretrained(path, trust_remote_code=remote).eval()
    if not remote and getattr(model.config, "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")
    return model
for path in sorted(root.iterdir()):
    remote = (path / "modeling_tracenas.py").exists()
    model = loaded(AutoModelForCausalLM, path, remote)
    origin = "transformers_modules." if remote else "transformers."
    assert type(model).__module__.startswith(origin), type(model)
    with torch.no_grad():
        found[path.name] = model(ids).logits
        steps, cache = [], None
        for column in ids.split(1, dim=1):
            step = model(column, past_key_values=cache, use_cache=True)
            cache = step.past_key_values
            steps.append(step.logits)
        found[path.name + "/cached"] = torch.cat(steps, dim=1)
        hidden = loaded(AutoModel, path, remote)(ids).last_hidden_state
        found[path.name + "/hidden"] = model.lm_head(hidden)
        if cap := getattr(model.config, "final_logit_softcapping", None):
            found[path.name + "/hidden"] = torch.tanh(found[path.name + "/hidden"] / cap) * cap
        model.save_pretrained(again / path.name)
        copy = loaded(AutoModelForCausalLM, again / path.name, remote)
        found[path.name + "/again"] = copy(ids).logits
save_file(found, sys.argv[4])
"""


@pytest.mark.slow
def test_without_the_package(cases: dict[str, Case], tmp_path: Path) -> None:
    root = next(iter(cases.values())).draft.path.parent
    result = tmp_path / "logits.safetensors"
    arguments = [str(root), str(tmp_path / "again"), json.dumps(tokens().tolist()), str(result)]
    stderr = run_alone(WITHOUT_THE_PACKAGE, *arguments, home=tmp_path / "home")
    assert "per-layer attribute" not in stderr
    found = load_file(result)
    assert len(found) == 4 * len(cases)
    for key, value in found.items():
        assert_same(value, logits(cases[key.split("/")[0]].reference, tokens()))
    # what transformers saved there loads here with the package, without trust in remote code
    for name in HETEROGENEOUS:
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "again" / name).eval()
        assert type(model).__module__ == decoder_only.__name__
        assert_same(logits(model, tokens()), logits(cases[name].reference, tokens()))


@pytest.mark.parametrize("name", ["llama_first_block_skipped", "qwen2_no_attention_in_layer_0"])
def test_saved_again_after_training(name: str, cases: dict[str, Case], tmp_path: Path) -> None:
    model = cases[name].load()
    train_one_step(model, tokens(), tokens())
    model.save_pretrained(tmp_path / "tuned")
    saved = json.loads((tmp_path / "tuned" / "config.json").read_text())
    assert saved["auto_map"] == auto_map(VARIANTS[name].of)
    code = (tmp_path / "tuned" / CODE_FILE).read_text()
    assert code == (cases[name].draft.path / CODE_FILE).read_text()
    check_checkpoint(tmp_path / "tuned")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned").eval()
    assert_same(logits(again, tokens()), logits(model, tokens()))


AGAIN = {
    # from "no_attention_in_layer_0"; what is gone already stays gone
    "heterogeneous": [(0, 0.4), (0.5, 0.4), (0, 0), (1, 0)],
    "stock": [(0, 0), (0.5, 0.4), (0, 0), (0, 0)],
}


@pytest.mark.parametrize("outcome", AGAIN)
@pytest.mark.parametrize("family", DECODERS)
def test_pruned_again(family: str, outcome: str, cases: dict[str, Case], tmp_path: Path) -> None:
    first = cases[f"{family}_no_attention_in_layer_0"]
    second = cut(first.load(), AGAIN[outcome], tmp_path / "second")
    assert second.draft.stock == (outcome == "stock" and family not in FIXED_HEADS)
    check_checkpoint(second.draft.path)
    model = second.load()
    assert_same(logits(model, tokens()), logits(second.reference, tokens()))
    outside = second.family.outside(first.dense.config.to_dict())
    predicted = parameters([b.spec for b in second.blocks], outside, Architecture(second.draft.layers))
    assert sum(p.numel() for p in model.parameters()) == predicted


def test_sliding_layers_stay_sliding(cases: dict[str, Case]) -> None:
    """Qwen2's layers 2 and 3 slide; without block 0 they are layers 1 and 2."""
    config = cases["qwen2_first_block_skipped"].load().config
    assert config.layer_types == ["full_attention", "sliding_attention", "sliding_attention"]
    assert config.max_window_layers == 1
    assert [c.num_attention_heads for c in config.per_layer_config] == [2, 4, 2]


def test_bf16_and_shards(cases: dict[str, Case], tmp_path: Path) -> None:
    case = cases["llama_first_block_skipped"]
    whole = save_pruned(case.dense, None, case.family, case.blocks, case.kept, tmp_path / "a", dtype=torch.bfloat16)
    sharded = save_pruned(
        case.dense,
        None,
        case.family,
        case.blocks,
        case.kept,
        tmp_path / "b",
        dtype=torch.bfloat16,
        max_shard_size=20_000,
    )
    assert len(list(sharded.path.glob("*.safetensors"))) > 2
    check_checkpoint(sharded.path)
    expected = {name: value.to(torch.bfloat16) for name, value in case.load().state_dict().items()}
    for draft in (whole, sharded):
        model = AutoModelForCausalLM.from_pretrained(draft.path)  # transformers takes the dtype of config.json
        state = model.state_dict()
        assert set(state) == set(expected)
        assert all(state[name].dtype == torch.bfloat16 and state[name].equal(expected[name]) for name in expected)


def test_replaced_output_projections(cases: dict[str, Case], tmp_path: Path) -> None:
    case = cases["llama_first_block_skipped"]
    generator = torch.Generator().manual_seed(1)
    outputs = {}
    for (index, name), ids in case.kept.items():
        if ids is not None:
            sub = next(s for s in case.blocks[index].sub_blocks if s.spec.name == name)
            per_unit = case.dense.get_submodule(f"{case.blocks[index].path}.{sub.output}").in_features // sub.spec.units
            outputs[index, name] = torch.randn(TINY["hidden_size"], len(ids) * per_unit, generator=generator)
    draft = save_pruned(case.dense, None, case.family, case.blocks, case.kept, tmp_path / "out", outputs=outputs)
    layers = AutoModelForCausalLM.from_pretrained(draft.path).model.layers
    for (index, name), weight in outputs.items():
        place = index - 1  # block 0 is skipped
        module = layers[place].self_attn.o_proj if name == "attention" else layers[place].mlp.down_proj
        assert module.weight.equal(weight)


@pytest.mark.slow
def test_trainer_checkpoints_load(cases: dict[str, Case], tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    model = cases["llama_no_attention_in_layer_0"].load()
    rows = [{"input_ids": row, "labels": row} for row in tokens(batch=8)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "run"),
        max_steps=2,
        save_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    Trainer(model=model, args=arguments, train_dataset=rows).train()
    saved = tmp_path / "run" / "checkpoint-2"
    check_checkpoint(saved)
    for trusted in (False, True):
        again = AutoModelForCausalLM.from_pretrained(saved, trust_remote_code=trusted).eval()
        assert_same(logits(again, tokens()), logits(model.eval(), tokens()))
