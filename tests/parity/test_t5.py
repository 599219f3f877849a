"""Pruned T5 and Flan-T5 checkpoints, reloaded with and without the package, are the masked dense model."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pruned_cases import Case, assert_same, cut, run_alone, train_one_step
from safetensors.torch import load_file
from tiny import FLAN, tiny_model
from transformers import AutoModelForSeq2SeqLM

from tracenas.errors import UserError
from tracenas.models.checkpoints.checking import check_checkpoint
from tracenas.models.checkpoints.writing import save_pruned
from tracenas.models.functionals.loss import next_token_nll
from tracenas.models.shipped.checkpoint_code import CODE_FILE
from tracenas.models.shipped.encoder_decoder import SelectedHeads
from tracenas.models.shipped.heterogeneous import register
from tracenas.space.architecture import Architecture
from tracenas.space.costs import parameters

pytestmark = pytest.mark.parity

# Fractions that are kept: of heads and channels in 4 blocks of the encoder, of heads, cross-attention heads and
# channels in 3 blocks of the decoder; 0 is bypassed.
Shape = list[tuple[float, ...]]
SHAPES: dict[str, Shape] = {
    "first_blocks_skipped": [(0, 0), (0.5, 0.7), (0.75, 1), (0.5, 0.4), (0, 0, 0), (0.5, 0.75, 0.7), (1, 0.5, 0.4)],
    "no_attention_in_block_0": [(0, 0.7), (0.5, 0), (1, 0.4), (0.5, 1), (0, 0.5, 0.7), (0.75, 1, 0), (0.5, 0.5, 1)],
    "no_cross_attention": [(0.5, 0.4), (0.5, 0.7), (0, 0), (1, 1), (0.5, 0, 0.7), (0.25, 0.5, 1), (1, 0, 0)],
    "no_self_attention_at_all": [(0, 0.4), (0, 0.7), (0, 1), (0, 0), (0, 1, 0.7), (0, 0.5, 1), (0, 0, 0.4)],
    "decoder_deeper": [(0, 0), (0, 0), (0, 0), (1, 0.7), (1, 1, 0.7), (1, 1, 0.7), (1, 1, 0.7)],
    "channels": [(1, 0.7), (0, 0), (1, 0.7), (1, 0.7), (0, 0, 0), (1, 1, 0.7), (1, 1, 0.7)],
}
STOCK = {"channels"}
KINDS: dict[str, dict[str, Any]] = {"t5": {}, "flan": FLAN}
NAMES = [f"{kind}_{shape}" for kind in KINDS for shape in SHAPES]
# without repeated tokens: small random models repeat one for ever
GREEDY: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "no_repeat_ngram_size": 1}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    register("t5")
    root = tmp_path_factory.mktemp("checkpoints")
    return {
        f"{kind}_{name}": cut(tiny_model("t5", **changes), shape, root / f"{kind}_{name}")
        for kind, changes in KINDS.items()
        for name, shape in SHAPES.items()
    }


def tokens(batch: int = 2, length: int = 11, seed: int = 3) -> torch.Tensor:
    """Longer than the largest distance that the position bias tells apart by one."""
    return torch.randint(2, 257, (batch, length), generator=torch.Generator().manual_seed(seed))


def inputs() -> dict[str, torch.Tensor]:
    return {"input_ids": tokens(length=15), "decoder_input_ids": tokens(length=9, seed=4)}


@torch.no_grad()
def logits(model: Any, **kwargs: Any) -> torch.Tensor:
    return model(**(inputs() | kwargs)).logits


def attentions(model: Any) -> set[str]:
    """The implementations that its modules were told."""
    return {m.config._attn_implementation for m in model.modules() if hasattr(m, "config")}


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_the_masked_model(name: str, cases: dict[str, Case]) -> None:
    case = cases[name]
    check_checkpoint(case.draft.path)
    expected = logits(case.reference)
    assert (expected - logits(case.dense)).abs().max() > 0.1  # the cut is not a small one
    for attention in ("eager", "sdpa"):
        model = case.load(attn_implementation=attention)
        assert_same(logits(model), expected)
    stock = copy.deepcopy(case.dense)  # whose stacks transformers 5.17 does not tell
    stock.set_attn_implementation("sdpa")
    for changed in (model, stock):
        changed.set_attn_implementation("eager")
    assert attentions(model) == attentions(stock) and model.config._attn_implementation == "eager"
    assert_same(logits(model), expected)
    with torch.no_grad():
        assert_same(next_token_nll(model, tokens()), next_token_nll(case.reference, tokens()))


@pytest.mark.parametrize("name", NAMES)
def test_counts_and_form(name: str, cases: dict[str, Case]) -> None:
    case, stock = cases[name], name.partition("_")[2] in STOCK
    outside = case.family.outside(case.dense.config.to_dict())
    predicted = parameters([b.spec for b in case.blocks], outside, Architecture(case.draft.layers))
    model = case.load()
    assert sum(p.numel() for p in model.parameters()) == predicted == case.draft.parameters
    assert case.draft.stock == stock
    assert (case.draft.path / CODE_FILE).exists() != stock
    config = json.loads((case.draft.path / "config.json").read_text())
    assert config["model_type"] == ("t5" if stock else "tracenas_t5")
    assert config["tie_word_embeddings"] == (not name.startswith("flan"))
    assert (model.lm_head.weight is model.shared.weight) != name.startswith("flan")
    if not stock:
        assert config["auto_map"]["AutoModelForSeq2SeqLM"].endswith(".TraceNAST5ForConditionalGeneration")


def test_the_loss_is_transformers_own(cases: dict[str, Case]) -> None:
    for kind in KINDS:
        model, ids = cases[f"{kind}_channels"].dense, tokens(length=21)
        theirs = model(input_ids=ids[:, :10], labels=ids[:, 10:].contiguous()).loss
        assert abs(float(next_token_nll(model, ids).mean()) - float(theirs)) <= 1e-5 * float(theirs)


@pytest.mark.parametrize("name", NAMES)
def test_every_block_reads_the_columns_of_its_own_heads(name: str, cases: dict[str, Case]) -> None:
    case = cases[name]
    model = case.load()
    if case.draft.stock:
        return
    places = {"encoder": 0, "decoder": 0}
    for index, (block, layer) in enumerate(zip(case.blocks, case.draft.layers, strict=True)):
        if layer.skip:
            continue
        attention = getattr(model, block.stack).block[places[block.stack]].layer[0].SelfAttention
        places[block.stack] += 1
        ids = case.kept[index, "attention"]
        assert isinstance(attention, SelectedHeads) == (ids is not None)
        if ids is not None:
            assert attention.bias_heads == tuple(ids)
    for stack in places:
        table = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        tables = [n for n, _ in model.named_parameters() if n.startswith(stack) and "relative_attention_bias" in n]
        assert tables == [table]
        assert model.get_parameter(table).equal(case.dense.get_parameter(table))


@pytest.mark.parametrize("name", NAMES)
def test_decoding_with_a_cache(name: str, cases: dict[str, Case]) -> None:
    model, given = cases[name].load(), inputs()
    expected = logits(model)
    with torch.no_grad():
        encoded = model.get_encoder()(input_ids=given["input_ids"])
        cache = None
        for position, column in enumerate(given["decoder_input_ids"].split(1, dim=1)):
            step = model(encoder_outputs=encoded, decoder_input_ids=column, past_key_values=cache, use_cache=True)
            cache = step.past_key_values
            assert cache.get_seq_length() == position + 1
            assert_same(step.logits[:, 0], expected[:, position])
        first, rest = given["decoder_input_ids"].split([4, 5], dim=1)
        prefix = model(encoder_outputs=encoded, decoder_input_ids=first, use_cache=True)
        cached = prefix.past_key_values
        found = model(encoder_outputs=encoded, decoder_input_ids=rest, past_key_values=cached, use_cache=True)
    assert_same(found.logits, expected[:, 4:])


@pytest.mark.parametrize("name", NAMES)
def test_generation_is_that_of_the_masked_model(name: str, cases: dict[str, Case]) -> None:
    case, ids = cases[name], tokens()
    model, mask = case.load(), torch.ones_like(tokens())
    expected = case.reference.generate(ids, attention_mask=mask, **GREEDY)
    assert model.generate(ids, attention_mask=mask, **GREEDY).tolist() == expected.tolist()
    for options in ({"cache_implementation": "static", "disable_compile": True}, {"use_cache": False}):
        assert model.generate(ids, attention_mask=mask, **GREEDY, **options).tolist() == expected.tolist()
    beams = case.reference.generate(ids, attention_mask=mask, num_beams=3, **GREEDY)
    assert model.generate(ids, attention_mask=mask, num_beams=3, **GREEDY).tolist() == beams.tolist()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("left", [True, False])
def test_padding(name: str, left: bool, cases: dict[str, Case]) -> None:
    model, ids = cases[name].load(), tokens()
    real = slice(4, None) if left else slice(None, -4)
    batch, mask = ids.clone(), torch.ones_like(ids)
    batch[1], mask[1] = 0, 0
    batch[1, real], mask[1, real] = ids[1, real], 1
    padded = logits(model, input_ids=batch, attention_mask=mask)
    alone = inputs()["decoder_input_ids"]
    assert_same(padded[:1], logits(model, input_ids=ids[:1], decoder_input_ids=alone[:1]))
    assert_same(padded[1:], logits(model, input_ids=ids[1:, real], decoder_input_ids=alone[1:]))


WITHOUT_THE_PACKAGE = """
import json, sys
sys.modules["tracenas"] = None  # any import of it fails
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSeq2SeqLM
root, again, given = Path(sys.argv[1]), Path(sys.argv[2]), load_file(sys.argv[3])
found = {}
for path in sorted(root.iterdir()):
    remote = (path / "modeling_tracenas.py").exists()
    model = AutoModelForSeq2SeqLM.from_pretrained(path, trust_remote_code=remote).eval()
    origin = "transformers_modules." if remote else "transformers."
    assert type(model).__module__.startswith(origin), type(model)
    with torch.no_grad():
        found[path.name] = model(**given).logits
        hidden = AutoModel.from_pretrained(path, trust_remote_code=remote).eval()(**given).last_hidden_state
        if model.config.scale_decoder_outputs:
            hidden = hidden * model.model_dim**-0.5
        found[path.name + "/hidden"] = model.lm_head(hidden)
        model.save_pretrained(again / path.name)
        copy = AutoModelForSeq2SeqLM.from_pretrained(again / path.name, trust_remote_code=remote).eval()
        found[path.name + "/again"] = copy(**given).logits
    greedy = dict(max_new_tokens=6, do_sample=False, eos_token_id=None, no_repeat_ngram_size=1)
    found[path.name + "/tokens"] = model.generate(given["input_ids"], **greedy)
save_file(found, sys.argv[4])
"""


@pytest.mark.slow
def test_without_the_package(cases: dict[str, Case], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    root, result = next(iter(cases.values())).draft.path.parent, tmp_path / "logits.safetensors"
    save_file(inputs(), tmp_path / "inputs.safetensors")
    arguments = [str(root), str(tmp_path / "again"), str(tmp_path / "inputs.safetensors"), str(result)]
    run_alone(WITHOUT_THE_PACKAGE, *arguments, home=tmp_path / "home")
    found = load_file(result)
    assert len(found) == 4 * len(cases)
    for key, value in found.items():
        case = cases[key.split("/")[0]]
        if key.endswith("/tokens"):
            expected = case.reference.generate(inputs()["input_ids"], **GREEDY)
            assert value.tolist() == expected.tolist()
        else:
            assert_same(value, logits(case.reference))
    # what transformers saved there loads here with the package, without trust in remote code
    for name in NAMES:
        model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "again" / name).eval()
        assert_same(logits(model), logits(cases[name].reference))


AGAIN: dict[str, Shape] = {
    # from "no_attention_in_block_0"; what is gone already stays gone
    "narrower": [(0, 0.4), (0.5, 0), (0.5, 0.4), (0, 0), (0, 0.5, 0.7), (0.5, 0.5, 0), (0, 0.5, 1)],
    "shallower": [(0, 0), (0, 0), (0.5, 1), (1, 0.7), (0, 0, 0), (0.5, 1, 0), (1, 0.5, 0.4)],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", AGAIN)
def test_pruned_again(kind: str, shape: str, cases: dict[str, Case], tmp_path: Path) -> None:
    first = cases[f"{kind}_no_attention_in_block_0"]
    second = cut(first.load(), AGAIN[shape], tmp_path / "second")
    check_checkpoint(second.draft.path)
    model = second.load()
    assert_same(logits(model), logits(second.reference))
    outside = second.family.outside(first.dense.config.to_dict())
    predicted = parameters([b.spec for b in second.blocks], outside, Architecture(second.draft.layers))
    assert sum(p.numel() for p in model.parameters()) == predicted == second.draft.parameters


def test_saved_again_after_training(cases: dict[str, Case], tmp_path: Path) -> None:
    model = cases["flan_first_blocks_skipped"].load()
    train_one_step(model, tokens(), tokens(seed=4))
    model.save_pretrained(tmp_path / "tuned")
    check_checkpoint(tmp_path / "tuned")
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "tuned").eval()
    assert_same(logits(again), logits(model))


def test_what_cannot_be_written_is_refused(cases: dict[str, Case], tmp_path: Path) -> None:
    case = cases["t5_first_blocks_skipped"]
    gone = {key: None if case.blocks[key[0]].stack == "encoder" else ids for key, ids in case.kept.items()}
    with pytest.raises(UserError, match="every block of the encoder is skipped"):
        save_pruned(case.dense, None, case.family, case.blocks, gone, tmp_path / "out")
    with pytest.raises(UserError, match="stub-removed-attention: family 't5'"):
        save_pruned(case.dense, None, case.family, case.blocks, case.kept, tmp_path / "out", stub_attention=True)
    assert not list(tmp_path.iterdir())
