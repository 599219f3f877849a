"""What lm-eval asserts away or asks the machine is refused in one line, or not asked."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import tiny_model

from tracenas.errors import UserError
from tracenas.evaluation.harness import _without_notes
from tracenas.evaluation.language_model import LanguageModel
from tracenas.models.functionals.perplexity import perplexity

pytestmark = pytest.mark.filterwarnings("default")


def question(context: str, continuation: Any) -> Any:
    return SimpleNamespace(args=(context, continuation), task_name="piqa", doc_id=0)


@pytest.fixture(scope="module")
def unnamed(tokenizer: Any) -> Any:
    """A tokenizer that names neither BOS nor EOS, nor anything else."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)


def test_tokenizer_without_special_tokens(unnamed: Any) -> None:
    """The configuration's EOS stands before an empty prompt, as if the tokenizer named it."""
    from lm_eval.models.huggingface import HFLM

    model, size = tiny_model("llama"), len(unnamed)
    lm = LanguageModel(model, unnamed, batch_size=2, shard=False)
    asked = [question("", "a text"), question("one", " two"), question("one", " three")]
    found = lm.loglikelihood(asked, disable_tqdm=True)
    named = type(unnamed)(tokenizer_object=unnamed.backend_tokenizer, eos_token="</s>")
    expected = HFLM(pretrained=model, tokenizer=named, backend="causal", batch_size=2)
    assert [f[0] for f in found] == pytest.approx([e[0] for e in expected.loglikelihood(asked, disable_tqdm=True)])
    assert lm.generate_until([question("one", {"until": ["x"], "max_gen_toks": 4})] * 2, disable_tqdm=True)
    assert (lm.eot_token_id, lm.prefix_token_id) == (0, 0)
    assert len(unnamed) == size and unnamed.pad_token_id is None  # the caller's is as it was, no token was added
    assert lm.tokenizer.pad_token_id < model.config.vocab_size


def test_no_special_token_anywhere(unnamed: Any) -> None:
    model = tiny_model("llama", eos_token_id=None, pad_token_id=None)
    with pytest.raises(UserError, match="neither tokenizer nor config.json names one: set eos_token"):
        LanguageModel(model, unnamed, batch_size=2, shard=False)


@pytest.mark.parametrize("selects", [True, False])
@pytest.mark.parametrize(
    ("context", "continuation", "told"),
    [
        ("x", "y" * 65, "a prompt of 1 tokens with an answer of 65; .* no more than the model's 64 positions"),
        ("x", "", "a prompt of 1 tokens with an answer of 0"),
        (" ", "y", "a prompt of 0 tokens with an answer of 2"),
    ],
)
def test_what_cannot_be_answered(tokenizer: Any, selects: bool, context: str, continuation: str, told: str) -> None:
    model = tiny_model("llama")
    if not selects:
        forward = model.forward
        model.forward = lambda input_ids: forward(input_ids)
    lm = LanguageModel(model, tokenizer, batch_size=2, shard=False)
    with pytest.raises(UserError, match=f"task piqa: {told}"):
        lm.loglikelihood([question("a", "b"), question(context, continuation)], disable_tqdm=True)
    lm.loglikelihood([question("x", "y" * 64)], disable_tqdm=True)  # as long as the positions


def test_no_room_for_what_is_to_be_generated(tokenizer: Any) -> None:
    lm = LanguageModel(tiny_model("llama"), tokenizer, batch_size=2, shard=False)
    for asked in ({"until": []}, {"until": [], "max_new_tokens": 64}):
        with pytest.raises(UserError, match=r"task piqa: (256|64) new tokens .* the model has 64 positions"):
            lm.generate_until([question("a", asked)], disable_tqdm=True)


def test_git_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    from lm_eval import evaluator

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    before = evaluator.get_git_commit_hash
    before()
    assert "fatal" in capfd.readouterr().err  # what a user would see
    with _without_notes():
        assert evaluator.get_git_commit_hash() is None
    assert not capfd.readouterr().err and evaluator.get_git_commit_hash is before


def test_a_process_without_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last of three processes that share two windows adds nothing to the sum, and reports the whole."""
    model, windows = tiny_model("llama"), torch.arange(1, 17).view(2, 8)
    whole = perplexity(model, windows, 4)
    parts = []
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda total: parts.append(total.clone()))
    for rank in range(3):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        assert perplexity(model, windows, 4, shard=True).tokens == whole.tokens
    assert parts[2] == 0
    assert float(sum(parts)) / whole.tokens == pytest.approx(whole.nll)
