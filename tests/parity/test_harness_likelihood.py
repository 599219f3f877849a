"""The language model that the harness is given against lm-eval's own, request by request."""

from types import SimpleNamespace
from typing import Any

import pytest
from tiny import tiny_model

from tracenas.errors import UserError
from tracenas.evaluation.language_model import LanguageModel

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]

LONG = "a context that is longer than all the positions of the model, by some words at least "


def instances() -> list[Any]:
    """Byte-level text: answers to questions, an empty context, contexts that end in a space, and too long ones."""
    pairs = [(f"Question {q}: what is it?", f" answer {a}" * (1 + a % 2)) for q in range(3) for a in range(4)]
    pairs += [(f"Letter {q}:", letter) for q in range(2) for letter in "ABCD"]
    pairs += [("", "a text"), ("", "another"), ("one word ", "two"), ("one word ", "three"), ("alone", " it is")]
    pairs += [(LONG, " yes"), (LONG, " or not"), (LONG * 2, " no")]
    return [SimpleNamespace(args=pair, task_name="long" if pair[0].startswith(LONG) else "short") for pair in pairs]


class Hook:
    """Notes what would be cached."""

    def __init__(self) -> None:
        self.noted: dict[Any, Any] = {}

    def add_partial(self, method: str, request: Any, answer: Any) -> None:
        assert method == "loglikelihood"
        self.noted[request] = answer


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
@pytest.mark.parametrize("selects", [True, False])
def test_answers_equal_lm_evals(kind: str, selects: bool, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.models.huggingface import HFLM

    model = tiny_model(kind)
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=4)
    expected = theirs.loglikelihood(instances(), disable_tqdm=True)
    calls = []
    taken = HFLM._loglikelihood_tokens
    monkeypatch.setattr(HFLM, "_loglikelihood_tokens", lambda *a, **k: calls.append(1) or taken(*a, **k))
    if not selects:
        forward = model.forward
        model.forward = lambda input_ids: forward(input_ids)
    lm = LanguageModel(model, tokenizer, batch_size=4, shard=False)
    lm.cache_hook = Hook()
    found = lm.loglikelihood(instances(), disable_tqdm=True)
    assert [f[0] for f in found] == pytest.approx([e[0] for e in expected], rel=1e-5, abs=1e-5)
    assert [f[1] for f in found] == [e[1] for e in expected]
    assert bool(calls) != selects
    assert lm.truncated == {"long": 3, "short": 0}
    assert lm.cache_hook.noted == {i.args: answer for i, answer in zip(instances(), found, strict=True)}


@pytest.mark.parametrize(("bos", "added"), [("auto", None), ("on", True), ("off", False)])
def test_bos_is_added_where_lm_eval_adds_it(bos: Any, added: bool | None, bos_tokenizer: Any) -> None:
    from lm_eval.models.huggingface import HFLM

    model = tiny_model("llama", vocab_size=258)
    theirs = HFLM(pretrained=model, tokenizer=bos_tokenizer, batch_size=4, add_bos_token=added)
    lm = LanguageModel(model, bos_tokenizer, batch_size=4, shard=False, bos=bos)
    lm.cache_hook = Hook()
    expected = theirs.loglikelihood(instances(), disable_tqdm=True)
    found = lm.loglikelihood(instances(), disable_tqdm=True)
    assert [f[0] for f in found] == pytest.approx([e[0] for e in expected], rel=1e-5, abs=1e-5)
    assert lm.tok_encode("a")[0] == (257 if bos != "off" else bos_tokenizer("a").input_ids[1])


def test_bos_that_the_tokenizer_does_not_add(tokenizer: Any) -> None:
    with pytest.raises(UserError, match="bos on: tasks are encoded as lm-eval does"):
        LanguageModel(tiny_model("llama"), tokenizer, batch_size=4, shard=False, bos="on")


def test_windows_of_a_longer_text_equal_lm_evals(tokenizer: Any) -> None:
    from lm_eval.models.huggingface import HFLM

    model = tiny_model("llama")
    texts = [SimpleNamespace(args=(LONG * n,), task_name="text") for n in (1, 3)]
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=4)
    lm = LanguageModel(model, tokenizer, batch_size=4, shard=False)
    expected = theirs.loglikelihood_rolling(texts, disable_tqdm=True)
    assert lm.loglikelihood_rolling(texts, disable_tqdm=True) == pytest.approx(expected, rel=1e-5)
