"""Log-likelihoods of continuations against a forward pass over each request."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import partly_kept, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM

import tracenas
from tracenas.evaluation.likelihood import Answer, Capability, Request, _batches, capability, log_likelihoods
from tracenas.families import Options, config_family
from tracenas.models.checkpoints.writing import save_pruned

POSITIONS = 64


def text(seed: int, length: int) -> list[int]:
    return torch.randint(1, 257, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def requests() -> list[Request]:
    """Questions with several answers, answers alone, too long ones, and what stands for an empty context."""
    found: list[Request] = []
    for seed, length in enumerate((9, 21, 5, 21, 40)):
        found += [(text(seed, length), text(100 + 10 * seed + n, size)) for n, size in enumerate((1, 4, 2, 7, 1))]
    found += [(text(20 + n, 7 + 3 * n), text(30, 6)) for n in range(5)]  # the continuation in common
    found += [([0], text(40 + n, 1 + 2 * n)) for n in range(4)]
    found += [(text(50, 90), text(60 + n, size)) for n, size in enumerate((3, 3, 1, 30))]  # cut, two of them alike
    found += [(text(70, 62), text(80 + n, size)) for n, size in enumerate((1, 3, 2))]  # to the last position
    found += [(text(90, 3), text(91, POSITIONS))]
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0)).tolist()
    return [found[i] for i in order]


@torch.no_grad()
def direct(model: Any, wanted: Sequence[Request]) -> list[Answer]:
    found = []
    for context, continuation in wanted:
        read = torch.tensor([[*context, *continuation][-(POSITIONS + 1) :][:-1]])
        scores = model(read).logits[0, -len(continuation) :].log_softmax(-1)
        picked = sum(float(s[k]) for s, k in zip(scores, continuation, strict=True))
        found.append((picked, scores.argmax(-1).tolist() == list(continuation)))
    return found


def ours(model: Any, wanted: Sequence[Request], able: Capability | None = None, batch_size: int = 8) -> list[Answer]:
    found = dict(log_likelihoods(model, wanted, able or capability(model), batch_size=batch_size, max_length=POSITIONS))
    assert len(found) == len(wanted)
    return [found[index] for index in range(len(wanted))]


def assert_same(found: Sequence[Answer], expected: Sequence[Answer]) -> None:
    for (sum_found, greedy_found), (sum_expected, greedy_expected) in zip(found, expected, strict=True):
        assert sum_found == pytest.approx(sum_expected, rel=1e-5, abs=1e-5)
        assert greedy_found == greedy_expected


def with_greedy(model: Any, wanted: Sequence[Request]) -> list[Request]:
    """The requests, and one of every third context whose continuation the model would write itself."""
    more = []
    for context, _ in wanted[::3]:
        short, said = list(context[-20:]), []
        for _ in range(3):
            said.append(int(model(torch.tensor([[*short, *said]])).logits[0, -1].argmax()))
        more += [(short, said), (short, said[:1]), (short, [*said[:2], (said[2] + 1) % 257])]
    return [*wanted, *more]


MODELS: dict[str, tuple[str, dict[str, Any], int | None]] = {
    "llama": ("llama", {}, None),
    "gpt_neox": ("gpt_neox", {}, None),
    "qwen3_moe": ("qwen3_moe", {}, None),
    "gemma2, short window": ("gemma2", {}, 5),
    "gemma2, window inside the lengths": ("gemma2", {"sliding_window": 24}, 23),
    "gemma2, window beyond all lengths": ("gemma2", {"sliding_window": 128}, 127),
    "mistral, eager attention": ("mistral", {"sliding_window": 24, "attn_implementation": "eager"}, 23),
}


@pytest.mark.parametrize("name", MODELS)
def test_answers_are_those_of_a_pass_over_each_request(name: str) -> None:
    kind, changes, room = MODELS[name]
    model = tiny_model(kind, **changes)
    able = capability(model)
    assert able.selects and (able.room == room or (room is None and able.room > 10**9))
    wanted = with_greedy(model, requests())
    expected = direct(model, wanted)
    assert any(greedy for _, greedy in expected)
    for batch_size in (1, 8):
        assert_same(ours(model, wanted, able, batch_size), expected)
    assert_same(ours(model, wanted, replace(able, room=0)), expected)


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_a_pruned_model_shares_too(kind: str, tmp_path: Path) -> None:
    tracenas.register()
    dense = tiny_model(kind, sliding_window=128) if kind == "gemma2" else tiny_model(kind)
    family = config_family(dense.config.to_dict())
    blocks = family.blocks(dense.config.to_dict(), Options())
    draft = save_pruned(dense, None, family, blocks, partly_kept(blocks), tmp_path / "pruned")
    assert not draft.stock
    model = AutoModelForCausalLM.from_pretrained(draft.path).eval()
    assert capability(model).room > POSITIONS
    for batch_size in (1, 8):
        assert_same(ours(model, requests(), batch_size=batch_size), direct(model, requests()))


def counted(model: Any, wanted: Sequence[Request], able: Capability, batch_size: int) -> tuple[int, int]:
    """Tokens that went through the layers and through the head."""
    rows = {"layers": 0, "head": 0}

    def count(name: str) -> Any:
        return lambda module, args, output: rows.__setitem__(name, rows[name] + output.shape[:-1].numel())

    hooks = [
        model.get_input_embeddings().register_forward_hook(count("layers")),
        model.get_output_embeddings().register_forward_hook(count("head")),
    ]
    ours(model, wanted, able, batch_size)
    for hook in hooks:
        hook.remove()
    return rows["layers"], rows["head"]


def test_a_context_is_read_once_and_the_head_predicts_continuations_only() -> None:
    model = tiny_model("llama")
    able = capability(model)
    answers = [(text(seed, 30), text(10 * seed + n, 4)) for seed in (1, 2) for n in range(4)]
    assert counted(model, answers, able, 8) == (2 * 30 + 8 * 3, 2 + 8 * 3)
    assert counted(model, answers, able, 1) == (2 * 30 + 8 * 3, 2 + 8 * 3)
    assert counted(model, answers, replace(able, room=0), 8) == (8 * 33, 8 * 4)
    letters = [(text(1, 30), [n]) for n in range(4)]
    assert counted(model, letters, able, 8) == (30, 1)
    windows = [([0], text(n, 20)) for n in range(4)]  # nothing in common but what stands for an empty context
    assert counted(model, windows, able, 8) == (4 * 20, 4 * 20)


@pytest.mark.parametrize(
    ("lengths", "size", "expected"),
    [
        ([], 8, []),
        ([9], 8, [1]),
        ([30, 29, 28, 27], 2, [2, 2]),
        ([342, 225, 142, 103, 103, 102, 20, 20, 20], 8, [1, 1, 1, 3, 3]),
        ([4, 3, 2, 1], 8, [4]),
    ],
)
def test_rows_of_like_length_stand_together(lengths: list[int], size: int, expected: list[int]) -> None:
    batches = list(_batches(range(len(lengths)), lengths, size))
    assert [len(batch) for batch in batches] == expected
    assert [item for batch in batches for item in batch] == list(range(len(lengths)))


def test_recurrent_states_are_not_shared() -> None:
    config = AutoConfig.for_model(
        "mamba", vocab_size=257, hidden_size=16, state_size=4, num_hidden_layers=2, pad_token_id=0, eos_token_id=0
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    able = capability(model)
    assert able == Capability(selects=True, room=0)
    assert_same(ours(model, requests()[:12], able), direct(model, requests()[:12]))


def test_frequencies_that_depend_on_the_length_are_not_shared() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    assert capability(tiny_model("llama", rope_parameters=rope)) == Capability(selects=True, room=0)


def test_what_cannot_select_positions_is_told() -> None:
    model = tiny_model("llama")
    forward = model.forward
    model.forward = lambda input_ids, attention_mask=None: forward(input_ids, attention_mask)
    assert capability(model) == Capability(selects=False, room=0)
    # accepted, but not heeded
    model.forward = lambda input_ids, logits_to_keep=0: forward(input_ids)
    assert capability(model) == Capability(selects=False, room=0)
    assert capability(tiny_model("t5")) == Capability(selects=False, room=0)
    with pytest.raises(ValueError, match="logits_to_keep"):
        ours(model, requests(), Capability(selects=False, room=0))


@pytest.mark.parametrize(("context", "size"), [([], 3), ([1], 0), ([1], POSITIONS + 1)])
def test_what_cannot_be_predicted_is_refused(context: list[int], size: int) -> None:
    with pytest.raises(ValueError, match="expected at least 1, and from 1 to 64"):
        ours(tiny_model("llama"), [(context, text(0, size))])
