"""Arithmetic of recovery: schedule, batches, distillation loss, instruction labels, data order."""

import copy
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tracenas.commands.recover.checks import parse_tokens
from tracenas.data.encoding import TextEncoding
from tracenas.errors import UserError
from tracenas.journal import Journal
from tracenas.recovery.callbacks import cut_log
from tracenas.recovery.datasets import Rows, Windows, collate_padded, collate_windows
from tracenas.recovery.instructions import encode_chat, instruction_examples, row_messages
from tracenas.recovery.settings import (
    TrainSettings,
    accumulation,
    default_batch,
    largest_micro_batch,
    learning_rate_factor,
)
from tracenas.recovery.throughput import flops_per_token


def schedule(steps: int, **changes: Any) -> list[float]:
    factor = learning_rate_factor(TrainSettings(steps, 0, 1, 1, 1e-4, **changes))
    return [factor(step) for step in range(steps)]


def test_warmup_stable_decay_has_the_papers_shares() -> None:
    """Table 5: 0.05 / 0.65 / 0.30."""
    rates = schedule(1000)
    assert rates[:50] == pytest.approx([(i + 1) / 50 for i in range(50)])
    assert rates[50:700] == [1.0] * 650
    assert rates[700:] == pytest.approx([(1000 - i) / 301 for i in range(700, 1000)])


def test_no_step_has_a_rate_of_zero() -> None:
    for steps in (1, 2, 3, 7, 20):
        assert min(schedule(steps)) > 0 and max(schedule(steps)) <= 1


def test_decay_ends_at_the_least_rate() -> None:
    assert schedule(100, min_lr_ratio=0.1)[-1] == pytest.approx(0.1 + 0.9 / 31)
    cosine = schedule(100, decay_form="cosine")
    assert cosine[-1] == pytest.approx(0.5 * (1 - math.cos(math.pi / 31)))


@pytest.mark.parametrize(("step", "left"), [(4, [0, 2, 4]), (2, [0, 2]), (0, [])])
def test_a_log_has_no_step_twice_when_a_run_goes_on(tmp_path: Path, step: int, left: list[int]) -> None:
    """From a checkpoint what comes behind it; without one everything, the measurement before training included."""
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps({"step": n}) + "\n" for n in (0, 2, 4)))
    cut_log(log, step)
    assert [record["step"] for record in Journal(log).read()] == left


def test_global_batch() -> None:
    assert accumulation(1024, 8, 6 // 3) == 64
    assert largest_micro_batch(1024, 2, 4096, 16384) == 4
    assert largest_micro_batch(12, 1, 32, 160) == 4  # 5 would fit but does not divide 12
    with pytest.raises(UserError, match="6 processes with batch 1 take 6 sequences at once.*1020 or 1026"):
        largest_micro_batch(1024, 6, 4096, 16384)


@pytest.mark.parametrize(
    ("length", "world", "tokens", "at_once", "batch"),
    [
        (4096, 1, None, None, 128),
        (4096, 6, None, None, 126),
        (4096, 8, None, 4, 128),
        (512, 1, 50_000_000, None, 1024),
        (512, 1, 2_000_000, None, 78),
        (512, 1, 100, None, 1),
        (512, 2, 2_000_000, 8, 64),
    ],
)
def test_the_default_batch_is_half_a_million_tokens_and_fewer_of_few(
    length: int, world: int, tokens: int | None, at_once: int | None, batch: int
) -> None:
    assert default_batch(length, world, tokens, at_once) == batch
    assert batch % (world * (at_once or 1)) == 0


@pytest.mark.parametrize(
    ("text", "count"), [("50M", 50_000_000), ("1.5B", 1_500_000_000), ("20k", 20_000), ("12,000", 12_000)]
)
def test_counts_of_tokens(text: str, count: int) -> None:
    assert parse_tokens(text) == count


@pytest.mark.parametrize("text", ["", "5%", "0", "many", "-3M"])
def test_what_is_no_count_of_tokens(text: str) -> None:
    with pytest.raises(UserError, match=f"tokens '{text}': expected a count such as 50M"):
        parse_tokens(text)


def test_operations_per_token() -> None:
    """Llama-2-7B at 4,096 tokens: 6 N + 12 · 32 · 4096 · 4096."""
    assert flops_per_token(6_607_077_376, 32 * 4096, 4096) == 6 * 6_607_077_376 + 12 * 32 * 4096 * 4096
    assert flops_per_token(100, 0, 8, trained=False, teacher=(10, 1)) == 400 + 20 + 32


# --- distillation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("chunk", [1 << 22, 40])
def test_kl_and_its_gradient(temperature: float, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from tracenas.recovery import distill

    monkeypatch.setitem(distill._CHUNK_ELEMENTS, "cpu", chunk)
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(7, 11, generator=generator, dtype=torch.float32, requires_grad=True)
    teacher = torch.randn(7, 11, generator=generator)
    targets = distill.Targets(F.log_softmax(teacher / temperature, -1))
    loss = distill.kl_sum(student, targets, temperature)
    loss.backward()
    p, log_q = (teacher / temperature).softmax(-1), (student.detach() / temperature).log_softmax(-1)
    assert float(loss.detach()) == pytest.approx(float((p * (p.log() - log_q)).sum()) * temperature**2, rel=1e-5)
    assert student.grad is not None
    assert torch.allclose(student.grad, temperature * (log_q.exp() - p), atol=1e-6)


def test_top_k_is_the_divergence_over_k_and_the_rest() -> None:
    from tracenas.recovery.distill import Targets, kl_sum

    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(5, 9, generator=generator), torch.randn(5, 9, generator=generator)
    top = teacher.log_softmax(-1).topk(3, dim=-1)
    p, q = teacher.softmax(-1), student.softmax(-1)
    kept_p, kept_q = p.gather(1, top.indices), q.gather(1, top.indices)
    p = torch.cat([kept_p, 1 - kept_p.sum(1, keepdim=True)], 1)
    q = torch.cat([kept_q, 1 - kept_q.sum(1, keepdim=True)], 1)
    expected = float((p * (p / q).log()).sum())
    assert float(kl_sum(student, Targets(top.values, top.indices), 1.0)) == pytest.approx(expected, rel=1e-4)
    assert expected <= float(kl_sum(student, Targets(teacher.log_softmax(-1)), 1.0))
    same = float(kl_sum(teacher, Targets(top.values, top.indices), 1.0))
    assert same == pytest.approx(0, abs=1e-5)


# --- instructions ---------------------------------------------------------------------------------

ROWS = [
    {"prompt": "Q", "response": "A"},
    {"instruction": "Q", "input": "", "output": "A"},
    {"question": "Q", "answer": "A"},
    {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]},
    {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
]


@pytest.mark.parametrize("row", ROWS)
def test_rows_of_all_usual_forms(row: dict[str, Any]) -> None:
    assert row_messages(row, "row") == [("user", "Q"), ("assistant", "A")]


def test_orca_and_alpaca_context() -> None:
    orca = {"id": "1", "system_prompt": "S", "question": "Q", "response": "A"}
    assert row_messages(orca, "row") == [("system", "S"), ("user", "Q"), ("assistant", "A")]
    assert row_messages({"instruction": "Q", "input": "C", "output": "A"}, "row")[0] == ("user", "Q\n\nC")


def test_labels_are_the_responses_and_their_end(tokenizer: Any) -> None:
    chat = [("user", "one"), ("assistant", "two"), ("user", "three"), ("assistant", "four")]
    ids, learned = encode_chat(chat, tokenizer, eos=0)
    assert tokenizer.decode([i for i, learn in zip(ids, learned, strict=True) if learn]) == "two</s>four</s>"
    assert tokenizer.decode(ids).startswith("### Instruction:\none\n\n### Response:\ntwo</s>### Instruction:\nthree")


def with_template(tokenizer: Any, template: str) -> Any:
    own = copy.deepcopy(tokenizer)
    own.chat_template = template
    return own


def test_labels_by_a_chat_template(tokenizer: Any) -> None:
    own = with_template(
        tokenizer,
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% if m['role'] == 'assistant' %}</s>{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}",
    )
    chat = [("user", "one"), ("assistant", "two"), ("user", "three"), ("assistant", "four")]
    ids, learned = encode_chat(chat, own, eos=0)
    assert own.decode(ids) == "<user>one<assistant>two</s><user>three<assistant>four</s>"
    assert own.decode([i for i, learn in zip(ids, learned, strict=True) if learn]) == "two</s>four</s>"


def test_answers_that_a_template_rewrites_are_read_and_the_last_one_is_learned(tokenizer: Any) -> None:
    """As Qwen 3's: only the last answer stands behind what was thought."""
    own = with_template(
        tokenizer,
        "{% for m in messages %}<{{ m['role'] }}>{% if m['role'] == 'assistant' and loop.last %}(think){% endif %}"
        "{{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}",
    )
    chat = [("user", "one"), ("assistant", "two"), ("user", "three"), ("assistant", "four")]
    ids, learned = encode_chat(chat, own, eos=0)
    assert own.decode(ids) == "<user>one</s><assistant>two</s><user>three</s><assistant>(think)four</s>"
    assert own.decode([i for i, learn in zip(ids, learned, strict=True) if learn]) == "(think)four</s>"


def test_an_answer_that_runs_into_the_end_of_its_prompt() -> None:
    """Two line breaks are one token of Qwen's and SmolLM's: the template's, and that of an answer that begins so."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["</s>", *letters, "ĊĊ"])}
    tokens = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ċ", "Ċ")]))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokens.decoder = decoders.ByteLevel()
    own = PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="</s>")
    own.chat_template = (
        "{% for m in messages %}{{ m['role'][0] + '\n' + m['content'] + '</s>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'a\n' }}{% endif %}"
    )
    chat = [("user", "Q"), ("assistant", "\nA"), ("user", "\nR"), ("assistant", "B")]
    ids, learned = encode_chat(chat, own, eos=0)
    assert own.decode(ids) == "u\nQ</s>a\n\nA</s>u\n\nR</s>a\nB</s>"
    assert own.decode([i for i, learn in zip(ids, learned, strict=True) if learn]) == "A</s>B</s>"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "x"}', "line 1: fields prompt; accepted: prompt/response"),
        ('{"prompt": "x", "response": "y"}\nno', "line 2 is not JSON"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "no turn of the assistant"),
        ('{"messages": [{"role": "cat", "content": "x"}]}', "a turn needs 'role'"),
        ("[1]", "row 0 is a JSON number"),
        ('{"prompt": "' + 99 * "x" + '", "response": "y"}', "no response within 64 tokens"),
    ],
)
def test_wrong_instructions(text: str, message: str, tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        instruction_examples(str(path), TextEncoding(tokenizer, vocab_size=257, eos=0), 64, seed=0)


def test_instructions_as_one_list_and_parquet(tmp_path: Path, tokenizer: Any) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"prompt": "x", "response": str(i)} for i in range(3)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = [
        list(
            itertools.islice(
                instruction_examples(str(path), TextEncoding(tokenizer, vocab_size=257, eos=0), 64, seed=0), 3
            )
        )
        for path in (tmp_path / "a.json", tmp_path / "a.parquet")
    ]
    assert all(torch.equal(a["labels"], b["labels"]) for a, b in zip(*found, strict=True))


def test_padding_has_no_label_and_no_attention() -> None:
    rows = [{"input_ids": torch.tensor(ids), "labels": torch.tensor(ids)} for ids in ([1, 2, 3], [4])]
    batch = collate_padded(9)(rows)
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["labels"].tolist() == [[1, 2, 3], [4, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


# --- order of the data ----------------------------------------------------------------------------


def first_tokens(examples: Any, count: int) -> list[list[int]]:
    return [example["input_ids"].tolist() for example in itertools.islice(iter(examples), count)]


def test_rows_are_all_seen_once_per_epoch_and_can_be_entered_anywhere() -> None:
    rows = torch.arange(10).view(5, 2)
    whole = first_tokens(Rows(rows, seed=1), 17)
    assert sorted(whole[:5]) == sorted(whole[5:10]) == rows.tolist() and whole[:5] != whole[5:10]
    for start in (0, 3, 5, 11):
        late = Rows(rows, seed=1)
        late.start = start
        assert first_tokens(late, 17 - start) == whole[start:]


def test_windows_go_on_for_ever_in_new_orders(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "text.txt"
    path.write_text("<|endoftext|>".join(f"document {i} is this" for i in range(8)))

    def windows() -> Windows:
        return Windows(str(path), TextEncoding(tokenizer, eos=0, vocab_size=257), 16, seed=0)

    per_epoch = 8 * 19 // 16
    whole = first_tokens(windows(), 3 * per_epoch)
    assert whole[:per_epoch] != whole[per_epoch : 2 * per_epoch]
    late = windows()
    late.start = per_epoch + 2
    assert first_tokens(late, 5) == whole[per_epoch + 2 : per_epoch + 7]
    batch = collate_windows(list(itertools.islice(iter(windows()), 2)))
    assert set(batch) == {"input_ids", "position_ids", "labels"} and batch["input_ids"].shape == (2, 16)


def test_windows_of_a_mixture_keep_their_shares_over_epochs(tmp_path: Path, tokenizer: Any) -> None:
    for name, letter in (("a.txt", "a"), ("b.txt", "b")):
        (tmp_path / name).write_text(letter * 40)
    source = f"{tmp_path / 'a.txt'}=0.75,{tmp_path / 'b.txt'}=0.25"
    found = first_tokens(Windows(source, TextEncoding(tokenizer, eos=0, vocab_size=257), 8, seed=0), 80)
    share = sum(tokenizer.decode(ids[:1]) == "a" for ids in found) / 80
    assert share == 0.75


# --- the split that chooses -------------------------------------------------------------------------


@pytest.mark.parametrize("documents", [1, 40])
def test_windows_of_the_split_are_never_trained_on(documents: int, tmp_path: Path, tokenizer: Any) -> None:
    """Three passes over the text, whose windows lie elsewhere in each, share no run of 16 tokens with the split."""
    import numpy as np

    from tracenas.data.further import overlaps

    rng = np.random.default_rng(0)
    texts = [" ".join(map(str, rng.integers(0, 10**6, size=2000 // documents))) for _ in range(documents)]
    path = tmp_path / "text.txt"
    path.write_text("<|endoftext|>".join(texts))
    whole = Windows(str(path), TextEncoding(tokenizer, eos=0, vocab_size=257), 64, seed=0)
    validation, rest = whole.split(8)
    assert len(validation) == 8
    known = torch.stack([example["input_ids"] for example in validation])
    count = 3 * (sum(map(len, texts)) // 64)
    before = torch.stack([e["input_ids"] for e in itertools.islice(iter(whole), count)])
    after = torch.stack([e["input_ids"] for e in itertools.islice(iter(rest), count)])
    assert bool(overlaps(before, known, 32).any()) and not bool(overlaps(after, known, 32).any())
    again, same = Windows(str(path), TextEncoding(tokenizer, eos=0, vocab_size=257), 64, seed=0).split(8)
    assert torch.equal(torch.stack([example["input_ids"] for example in again]), known)
    assert first_tokens(same, 5) == first_tokens(rest, 5)


def test_rows_of_the_split_are_never_trained_on(tmp_path: Path, tokenizer: Any) -> None:
    tokens = torch.randint(1, 257, (40, 32), generator=torch.Generator().manual_seed(0))
    validation, rest = Rows(torch.cat([tokens, tokens]), seed=0).split(64)
    chosen = {tuple(example["input_ids"].tolist()) for example in validation}
    trained = set(map(tuple, first_tokens(rest, 200)))
    assert len(validation) == 8 and not chosen & trained  # a tenth; the other copy of a row is left out, too
    assert len(chosen | trained) == 40
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"prompt": "x", "response": str(i % 30)}) + "\n" for i in range(60)))
    validation, rest = instruction_examples(
        str(path), TextEncoding(tokenizer, vocab_size=257, eos=0), 64, seed=0
    ).split(4)
    chosen = {tuple(example["input_ids"].tolist()) for example in validation}
    trained = set(map(tuple, first_tokens(rest, 120)))
    assert len(validation) == 4 and not chosen & trained and len(chosen | trained) == 30


def test_streamed_instructions_are_split_likewise(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tracenas.data import hub

    made = [{"prompt": "x", "response": str(i)} for i in range(50)]
    monkeypatch.setattr(hub, "streamed", lambda data, seed: iter(made[seed % 50 :] + made[: seed % 50]))
    validation, rest = instruction_examples(
        "org/chats", TextEncoding(tokenizer, vocab_size=257, eos=0), 64, seed=0
    ).split(64)
    chosen = {tuple(example["input_ids"].tolist()) for example in validation}
    trained = first_tokens(rest, 135)
    assert len(chosen) == 5 and not chosen & set(map(tuple, trained)) and len(set(map(tuple, trained))) == 45


# --- what refuses -----------------------------------------------------------------------------------

CHAT = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
TURNS = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        ("{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TURNS,
         [{"role": "system", "content": "S"}, *CHAT], "no system role"),
        ("{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
         "{{ raise_exception('roles must\\nalternate') }}{% endif %}{% endfor %}" + TURNS,
         [CHAT[0], *CHAT], "roles must"),
        (TURNS + "{{ messages[0]['content'] + 1 }}", CHAT, "can only concatenate str"),
        (TURNS + "{{ missing.field }}", CHAT, "'missing' is undefined"),
        (TURNS + "{% if %}", CHAT, "Expected an expression"),
        ("{% if messages | length > 3 %}x{% endif %}" + TURNS, [*CHAT, *CHAT], "it rewrites the prompt of an answer"),
    ],
)  # fmt: skip
def test_a_chat_template_that_refuses_is_told_with_the_row(
    template: str, messages: list[dict[str, str]], message: str, tmp_path: Path, tokenizer: Any
) -> None:
    own = with_template(tokenizer, template)
    path = tmp_path / "chats.jsonl"
    simple = "" if template.endswith(("1 }}", "field }}", "if %}")) else json.dumps({"messages": CHAT})
    path.write_text(f"{simple}\n" + json.dumps({"messages": messages}) + "\n")
    with pytest.raises(UserError) as caught:
        instruction_examples(str(path), TextEncoding(own, vocab_size=257, eos=0), 64, seed=0)
    assert f"'{path}', line 2: the chat template refuses it: " in str(caught.value)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": ["x"], "response": "y"}, "field 'prompt' holds a list, not a string"),
        ({"prompt": "x", "response": None}, "field 'response' holds a null; accepted"),
        ({"prompt": "x", "response": 3}, "field 'response' holds a number"),
        ({"instruction": "x", "input": {"a": 1}, "output": "y"}, "field 'input' holds a object"),
        ({"prompt": "x", "response": "\ud83d"}, r"field 'response' holds \\ud83d, half of a surrogate pair"),
        ({"messages": [{"role": "user", "content": None}, CHAT[1]]}, "'content' of a turn holds a null"),
        ({"messages": [{"role": "user", "content": "\udc00"}, CHAT[1]]}, "'content' of a turn holds .*half"),
        ({"messages": [{"role": "user"}, CHAT[1]]}, "a turn needs 'role'.*and 'content'"),
        ({"messages": None}, "the chat holds no turn of the assistant"),
    ],
)
def test_rows_of_another_type_are_told_with_their_line(
    row: dict[str, Any], message: str, tmp_path: Path, tokenizer: Any
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"prompt": "x", "response": "y", "input": None}) + "\n" + json.dumps(row))
    with pytest.raises(UserError, match=rf"'{path}', line 2: {message}"):
        instruction_examples(str(path), TextEncoding(tokenizer, vocab_size=257, eos=0), 64, seed=0)


def test_instructions_from_compressed_csv(tmp_path: Path, tokenizer: Any) -> None:
    import gzip

    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b'instruction,input,output\n"Say, it",,"one\ntwo"\n'))
    (tmp_path / "a.jsonl").write_text('{"prompt": "Say, it", "response": "one\\ntwo"}')
    found = [
        first_tokens(instruction_examples(str(path), TextEncoding(tokenizer, vocab_size=257, eos=0), 64, seed=0), 1)
        for path in (tmp_path / "a.csv.gz", tmp_path / "a.jsonl")
    ]
    assert found[0] == found[1]
