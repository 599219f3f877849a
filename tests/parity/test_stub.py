"""A head of zeros in place of removed attention: the same logits as without it, and its parameters are counted."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pruned_cases import SHAPES, Case, cut, dense_model, logits
from transformers import AutoModelForCausalLM

import tracenas
from tracenas.errors import UserError
from tracenas.families import FAMILIES, Family, config_family
from tracenas.models.checkpoints.checking import check_checkpoint
from tracenas.models.checkpoints.headers import read_header
from tracenas.models.checkpoints.writing import save_pruned
from tracenas.models.shipped.layers import Bypassed

pytestmark = pytest.mark.parity

STUBBED = [name for name in FAMILIES if not FAMILIES.get(name).stacks]
REMOVED = "no_attention_in_layer_0"  # and none in layer 2


@pytest.fixture(scope="module", autouse=True)
def registered() -> None:
    tracenas.register()


def tokens() -> torch.Tensor:
    return torch.randint(1, 257, (2, 12), generator=torch.Generator().manual_seed(3))


def both(family: str, tmp_path: Path) -> tuple[Case, Case]:
    """A model cut the same way without and with stubs."""
    model = dense_model(family)
    bypassed = cut(model, SHAPES[REMOVED], tmp_path / "same")
    stubbed = cut(model, SHAPES[REMOVED], tmp_path / "stub" / "same", stub_attention=True)
    return bypassed, stubbed


@pytest.mark.parametrize("family", STUBBED)
def test_logits_are_exactly_those_without_it(family: str, tmp_path: Path) -> None:
    bypassed, stubbed = both(family, tmp_path)
    check_checkpoint(stubbed.draft.path)
    model, expected = stubbed.load(), logits(bypassed.load(), tokens())
    assert logits(model, tokens()).equal(expected)
    prefix = model(tokens()[:, :5], use_cache=True)
    rest = logits(model, tokens()[:, 5:], past_key_values=prefix.past_key_values)
    torch.testing.assert_close(rest, expected[:, 5:], rtol=1e-4, atol=1e-4)
    without = {m.layer_idx for m in bypassed.load().modules() if isinstance(m, Bypassed) and m.attends}
    assert without == {0, 2} and not any(isinstance(m, Bypassed) and m.attends for m in model.modules())


@pytest.mark.parametrize("family", STUBBED)
def test_its_parameters_are_zeros_and_counted(family: str, tmp_path: Path) -> None:
    bypassed, stubbed = both(family, tmp_path)
    beside = {name: value for name, value in stubbed.load().named_parameters() if f"{value.abs().max():g}" == "0"}
    assert sum(value.numel() for value in beside.values()) == stubbed.draft.stub_parameters > 0
    assert stubbed.draft.parameters == bypassed.draft.parameters + stubbed.draft.stub_parameters
    headers = (read_header(case.draft.path / "model.safetensors") for case in (bypassed, stubbed))
    plain, ours = ({name: tensor.shape for name, tensor in header.items()} for header in headers)
    assert set(ours) - set(plain) == set(beside) and all(ours[name] == plain[name] for name in plain)
    config = json.loads((stubbed.draft.path / "config.json").read_text())
    assert config["tracenas_stubs"] == {"attention": [0, 2]}
    assert [own.get("skip") for own in config["per_layer_config"].values()] == [None, None, None, ["mlp"]]
    assert stubbed.draft.layers == bypassed.draft.layers
    if "num_key_value_heads" in config:
        own = config["per_layer_config"]["0"]
        assert own["num_attention_heads"] == own["num_key_value_heads"] == 1


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_where_no_attention_is_left_the_checkpoint_may_be_a_stock_one(family: str, tmp_path: Path) -> None:
    shape = [(0, 1.0), (0, 0), (0, 1.0), (0, 1.0)]
    model = dense_model(family, mlp_only_layers=[]) if family == "qwen3_moe" else dense_model(family)
    bypassed = cut(model, shape, tmp_path / "same")
    stubbed = cut(model, shape, tmp_path / "stub" / "same", stub_attention=True)
    assert stubbed.draft.stock and not bypassed.draft.stock
    assert logits(stubbed.load(), tokens()).equal(logits(bypassed.load(), tokens()))


def test_a_stubbed_checkpoint_is_pruned_again(tmp_path: Path) -> None:
    _, first = both("llama", tmp_path)
    model = first.load()
    again = cut(model, [(1, 0.5), (0, 0.5), (0, 0.5), (1, 0)], tmp_path / "again", stub_attention=True)
    assert [layer["heads"] for layer in again.draft.layers] == [1, 0, 0, 4]
    torch.testing.assert_close(logits(again.load(), tokens()), logits(again.reference, tokens()), rtol=1e-5, atol=1e-4)
    config = json.loads((again.draft.path / "config.json").read_text())
    assert config["tracenas_stubs"] == {"attention": [1, 2]}


def test_nothing_changes_where_no_attention_is_removed(tmp_path: Path) -> None:
    model = dense_model("llama")
    shape = [(0.5, 0.7), (1, 0), (0.5, 0.7), (0, 0)]
    for name, stub in (("plain", False), ("stub", True)):
        draft = cut(model, shape, tmp_path / name / "same", stub_attention=stub).draft
        assert draft.stub_parameters == 0 and not draft.stock
    files = [(tmp_path / name / "same" / "config.json").read_bytes() for name in ("plain", "stub")]
    assert files[0] == files[1]


def test_a_family_without_stubs_is_refused(tmp_path: Path) -> None:
    case = cut(dense_model("llama"), SHAPES[REMOVED], tmp_path / "plain")

    class Other:
        """All of Llama's description but the stub."""

        model_type = "llama"

        def __getattr__(self, name: str) -> Any:
            if name == "stub_overrides":
                return partial(Family.stub_overrides, self)
            return getattr(config_family({"model_type": "llama"}), name)

    kept = {key: None if ids is None else np.asarray(ids) for key, ids in case.kept.items()}
    family: Any = Other()
    with pytest.raises(UserError, match=r"family 'llama' has no stub for removed attention"):
        save_pruned(case.dense, None, family, case.blocks, kept, tmp_path / "no", stub_attention=True)
    assert not (tmp_path / "no").exists()


def test_training_leaves_all_but_an_output_bias_at_zero(tmp_path: Path) -> None:
    _, stubbed = both("llama", tmp_path)
    model = AutoModelForCausalLM.from_pretrained(stubbed.draft.path).train()
    zeros = {name: p for name, p in model.named_parameters() if not p.any()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(tokens(), labels=tokens()).loss.backward()
    optimizer.step()
    trained = {name for name, p in zeros.items() if p.any()}
    assert len(zeros) == 18 and trained == {f"model.layers.{i}.self_attn.o_proj.bias" for i in (0, 2)}
