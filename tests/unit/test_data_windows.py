"""How windows begin: by what the tokenizer does, a rule, or a token file's note."""

import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import processors

from tracenas.data.calibration import calibration
from tracenas.data.encoding import TextEncoding
from tracenas.data.further import further_calibration, overlaps
from tracenas.data.held_out import windows
from tracenas.data.packing import pack
from tracenas.data.tokens import save_tokens
from tracenas.data.windows import WindowStart, added_bos, text_tokens, token_file_start, window_start, with_bos
from tracenas.errors import UserError
from tracenas.recovery.datasets import text_examples

BOS = 257
TEXT = "".join(map(str, range(400)))


def adding(bos_tokenizer, template: str):
    """A tokenizer of the same vocabulary that adds other tokens by itself."""
    from transformers import PreTrainedTokenizerFast

    again = PreTrainedTokenizerFast(
        tokenizer_object=bos_tokenizer.backend_tokenizer.from_str(bos_tokenizer.backend_tokenizer.to_str()),
        bos_token="<s>",
        eos_token="</s>",
    )
    again.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", BOS), ("</s>", 0)]
    )
    return again


def test_told_by_what_the_tokenizer_adds(tokenizer, bos_tokenizer) -> None:
    assert added_bos(bos_tokenizer) == added_bos(adding(bos_tokenizer, "<s> $A </s>")) == BOS
    assert added_bos(tokenizer) is None
    assert added_bos(adding(bos_tokenizer, "$A </s>")) is None  # names a BOS, and does not add it
    assert added_bos(adding(bos_tokenizer, "</s> $A")) == 0  # the token that it adds, whatever it is called
    with pytest.raises(UserError, match="puts 2 tokens before every text, <s> </s>: accepted is one, or bos=off"):
        added_bos(adding(bos_tokenizer, "<s> </s> $A"))


def test_a_tokenizer_that_refuses_what_it_is_asked() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"one": 0}, unk_token="<unk>"))  # an exception
    nothing = Tokenizer(models.BPE({"a": 0}, []))
    nothing.pre_tokenizer = pre_tokenizers.FixedLength(0)  # a panic
    for backend in (words, nothing):
        refusing = PreTrainedTokenizerFast(tokenizer_object=backend)
        with pytest.raises(UserError, match="the tokenizer refuses it: "):
            window_start("a.txt", refusing)
        assert window_start("a.txt", refusing, "off") == WindowStart(None, carried=False)


def test_rules(tokenizer, bos_tokenizer) -> None:
    named = adding(bos_tokenizer, "$A")
    assert window_start("a.txt", named) == WindowStart(None, carried=False)
    assert window_start("a.txt", named, "on") == WindowStart(BOS, carried=True)
    assert window_start("a.txt", bos_tokenizer, "off") == WindowStart(None, carried=False)
    assert window_start("a.txt", tokenizer, "on", bos=7) == WindowStart(7, carried=True)
    assert window_start("a.txt", tokenizer, "on", bos=[7, 8]).bos == 7
    with pytest.raises(UserError, match=r"bos on: neither the tokenizer nor config.json names a BOS token"):
        window_start("a.txt", tokenizer, "on")


def test_bos_counts_in_the_length(tmp_path: Path, tokenizer, bos_tokenizer) -> None:
    """Nothing else that the tokenizer adds gets into a window."""
    bos_tokenizer = adding(bos_tokenizer, "<s> $A </s>")
    (tmp_path / "a.txt").write_text(TEXT)
    found = windows(tmp_path / "a.txt", TextEncoding(bos_tokenizer, bos=BOS), 20)
    assert found[:, 0].eq(BOS).all() and not found[:, 1:].eq(BOS).any() and not found.eq(0).any()
    assert torch.equal(found[:, 1:], windows(tmp_path / "a.txt", TextEncoding(tokenizer), 19))
    assert torch.equal(windows(tmp_path / "a.txt", TextEncoding(bos_tokenizer, bos=BOS), 20, limit=3), found[:3])
    drawn = calibration(str(tmp_path / "a.txt"), TextEncoding(bos_tokenizer, bos=BOS), samples=6, seq_len=20)
    plain = calibration(str(tmp_path / "a.txt"), TextEncoding(tokenizer), samples=6, seq_len=19)
    assert drawn.shape == (6, 20) and torch.equal(drawn, with_bos(plain, BOS))


def test_short_text(tmp_path: Path, bos_tokenizer) -> None:
    (tmp_path / "a.txt").write_text("x")
    found = windows(tmp_path / "a.txt", TextEncoding(bos_tokenizer, bos=BOS), 10)
    assert found.tolist() == [[BOS, *bos_tokenizer("x").input_ids[1:2]]]


def test_many_documents(tmp_path: Path, bos_tokenizer) -> None:
    """As many documents as samples: packed, and a BOS before every window, none before a document."""
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "document {i}"}}\n' for i in range(40)))
    drawn = calibration(str(tmp_path / "a.jsonl"), TextEncoding(bos_tokenizer, bos=BOS), samples=8, seq_len=16)
    assert drawn[:, 0].eq(BOS).all() and not drawn[:, 1:].eq(BOS).any() and drawn.eq(0).any()


def test_overlap_is_of_text(tmp_path: Path, bos_tokenizer) -> None:
    """A row as long as the runs that are compared is found behind another beginning, too."""
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "b.txt").write_text("x" * 15)
    text = windows(tmp_path / "a.txt", TextEncoding(bos_tokenizer), 64)
    inside, elsewhere = text[0, 5:20], windows(tmp_path / "b.txt", TextEncoding(bos_tokenizer), 15)[0]
    rows = with_bos(torch.stack([inside, elsewhere]), BOS)
    assert overlaps(rows, with_bos(text[:1], BOS), bos=BOS).tolist() == [True, False]
    assert overlaps(rows, text[:1], bos=BOS).tolist() == [True, False]
    assert torch.equal(text_tokens(rows, BOS), rows[:, 1:]) and torch.equal(text_tokens(text, BOS), text)


def test_further_text(tmp_path: Path, bos_tokenizer) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    known = calibration(str(tmp_path / "a.txt"), TextEncoding(bos_tokenizer, bos=BOS), samples=5, seq_len=20)
    more = further_calibration(
        str(tmp_path / "a.txt"), TextEncoding(bos_tokenizer, bos=BOS), reference=known, samples=5, seed=1
    )
    assert more.shape == (5, 20) and more[:, 0].eq(BOS).all()
    assert not overlaps(more, known, bos=BOS).any()


# --- token files ----------------------------------------------------------------------------------


def noted(path: Path, note: dict[str, str], first: int = 5) -> Path:
    save_tokens(path, torch.tensor([[5, 1, 2], [first, 3, 4]]), note)
    return path


def test_token_file_is_used_as_it_is(tmp_path: Path, bos_tokenizer) -> None:
    plain = noted(tmp_path / "plain.safetensors", {"source": "x"})
    with_one = noted(tmp_path / "with.safetensors", {"bos": "true"})
    without = noted(tmp_path / "without.safetensors", {"bos": "false"})
    assert window_start(str(plain), bos_tokenizer) == WindowStart(None, None)
    assert token_file_start(plain, "off") == WindowStart(None, None)
    assert (
        window_start(str(with_one), bos_tokenizer) == token_file_start(with_one, "on") == WindowStart(5, carried=True)
    )
    assert token_file_start(without) == token_file_start(without, "off") == WindowStart(None, carried=False)
    for path in (plain, with_one, without):
        assert calibration(str(path), TextEncoding(bos_tokenizer, bos=BOS)).tolist() == [[5, 1, 2], [5, 3, 4]]


@pytest.mark.parametrize(
    ("note", "first", "rule", "why"),
    [
        ({}, 5, "on", "does not say that its windows begin with BOS"),
        ({"bos": "false"}, 5, "on", "says that its windows have no BOS"),
        ({"bos": "true"}, 5, "off", "bos off: .* says that its windows begin with BOS"),
        ({"bos": "true"}, 6, "auto", "but they begin differently"),
        ({"bos": "True"}, 5, "auto", "its metadata say bos 'True', accepted: true, false"),
    ],
)
def test_token_file_refused(tmp_path: Path, note: dict[str, str], first: int, rule, why: str) -> None:
    with pytest.raises(UserError, match=why):
        token_file_start(noted(tmp_path / "a.safetensors", note, first), rule)


def test_token_file_without_ids(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(2)}, tmp_path / "a.safetensors", {"bos": "true"})
    with pytest.raises(UserError, match="has no tensor 'input_ids'"):
        token_file_start(tmp_path / "a.safetensors")


def test_note_leads_to_the_same_windows(tmp_path: Path) -> None:
    for start in (WindowStart(5, carried=True), WindowStart(None, carried=False), WindowStart(None, None)):
        path = noted(tmp_path / "a.safetensors", start.note)
        assert token_file_start(path, start.rule) == start


# --- training data --------------------------------------------------------------------------------


def test_packed_documents_begin_with_bos(bos_tokenizer) -> None:
    a, b = bos_tokenizer("ab").input_ids[1:3]
    packed = list(pack(["aaa", "b", "<s>bb"], bos_tokenizer, 4, eos=0, bos=BOS))
    assert [window.input_ids.tolist() for window in packed] == [[BOS, a, a, a], [0, BOS, b, 0], [BOS, b, b, 0]]
    assert [window.position_ids.tolist() for window in packed] == [[0, 1, 2, 3], [0, 0, 1, 2], [0, 1, 2, 3]]


def test_bos_is_read_and_not_learned(tmp_path: Path, bos_tokenizer) -> None:
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "{letter * 5}"}}\n' for letter in "abcdef"))
    examples = text_examples(
        str(tmp_path / "a.jsonl"), TextEncoding(bos_tokenizer, vocab_size=258, bos=BOS), 16, seed=0
    )
    for example in itertools.islice(examples, 6):
        read = example["input_ids"] == BOS
        assert read.any() and torch.equal(example["labels"] == -100, read)
        assert torch.equal(example["labels"][~read], example["input_ids"][~read])
    plain = text_examples(str(tmp_path / "a.jsonl"), TextEncoding(bos_tokenizer, vocab_size=258), 16, seed=0)
    first = next(iter(plain))
    assert first["labels"] is first["input_ids"] and not (first["input_ids"] == BOS).any()
