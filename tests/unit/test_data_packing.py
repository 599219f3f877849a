import itertools
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tracenas.data import packing
from tracenas.data.encoding import TextEncoding
from tracenas.data.packing import encode, interleave, pack
from tracenas.data.sources import documents
from tracenas.errors import UserError


def ids(text: str, tokenizer) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_documents_are_joined_by_eos_and_cut(tokenizer) -> None:
    texts = ["abcde", "f", "", "ghijklmnopq", "rs"]
    windows = list(pack(texts, tokenizer, 4, eos=0))
    stream = [token for text in texts if text for token in [*ids(text, tokenizer), 0]]
    assert np.concatenate([window.input_ids for window in windows]).tolist() == stream[: len(stream) // 4 * 4]
    assert all(window.input_ids.shape == (4,) and window.input_ids.dtype == np.int64 for window in windows)


def test_positions_restart_with_documents_and_windows(tokenizer) -> None:
    windows = list(pack(["abcde", "f", "ghijkl"], tokenizer, 5, eos=0))
    #         a b c d e | 0 f 0 g h | i j k l 0
    expected = [[0, 1, 2, 3, 4], [0, 0, 1, 0, 1], [0, 1, 2, 3, 4]]
    assert [window.position_ids.tolist() for window in windows] == expected


def test_positions_equal_a_slow_reference(tokenizer) -> None:
    rng = np.random.default_rng(0)
    texts = ["x" * int(length) for length in rng.integers(1, 30, size=50)]
    places: list[int] = []
    for text in texts:
        places += range(len(text) + 1)
    for number, window in enumerate(pack(texts, tokenizer, 16, eos=0)):
        expected, last = [], 0
        for at in range(16):
            last = 0 if at == 0 or places[number * 16 + at] == 0 else last + 1
            expected.append(last)
        assert window.position_ids.tolist() == expected


def test_windows_are_independent_copies(tokenizer) -> None:
    first, second = pack(["abcdefgh"], tokenizer, 4, eos=0)
    first.input_ids[:] = -1
    assert second.input_ids.tolist() == ids("efgh", tokenizer)


def test_stops_reading_once_windows_suffice(tokenizer) -> None:
    windows = pack(itertools.repeat("abc"), tokenizer, 8, eos=0)
    assert len(list(itertools.islice(windows, 5))) == 5


def test_no_warning_about_length(tokenizer, caplog: pytest.LogCaptureFixture) -> None:
    transformers_log = logging.getLogger("transformers")
    transformers_log.addHandler(caplog.handler)
    try:
        next(pack(["x" * (tokenizer.model_max_length * 3)], tokenizer, 8, eos=0))
    finally:
        transformers_log.removeHandler(caplog.handler)
    assert not caplog.records


def test_long_documents_in_pieces(tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["aa bb\nccc dddddddddddd eé", "f", "", "0123456789" * 3]
    whole = [part.tolist() for part in encode(texts, tokenizer)]
    monkeypatch.setattr(packing, "_PIECE", 7)
    assert packing.pieces(texts[0], 7) == ["aa bb\n", "ccc ", "ddddddd", "ddddd ", "eé"]
    assert [part.tolist() for part in encode(texts, tokenizer)] == whole


def test_no_tokens_of_length_zero_windows(tokenizer) -> None:
    with pytest.raises(ValueError, match="seq_len"):
        next(pack(["a"], tokenizer, 0, eos=0))


class TestInterleave:
    def test_shares_at_every_point(self, tokenizer) -> None:
        weights = [0.7, 0.2, 0.1]
        streams = [pack(itertools.repeat(letter * 7), tokenizer, 8, eos=0) for letter in "abc"]
        taken = np.zeros(3)
        for number, window in enumerate(itertools.islice(interleave(streams, weights), 200), start=1):
            taken[[ids(letter, tokenizer)[0] for letter in "abc"].index(window.input_ids[0])] += 1
            assert np.abs(taken - number * np.array(weights)).max() <= 1
        assert taken.tolist() == [140, 40, 20]

    def test_ends_with_the_source_whose_turn_it_is(self, tokenizer) -> None:
        streams = [pack(["a" * 7] * count, tokenizer, 8, eos=0) for count in (3, 100)]
        assert len(list(interleave(streams, [1, 1]))) == 6

    def test_arguments(self) -> None:
        for streams, weights in (([], []), ([iter([])], [0.0]), ([iter([])], [1, 1])):
            with pytest.raises(ValueError, match="positive weights"):
                next(interleave(streams, weights))


class TestEos:
    def test_of_the_tokenizer_first(self, tokenizer) -> None:
        assert TextEncoding(tokenizer).end == TextEncoding(tokenizer, 5).end == 0

    @pytest.mark.parametrize(("config", "expected"), [(5, 5), ([7, 8], 7), (0, 0)])
    def test_of_the_config(self, without_eos, config, expected: int) -> None:
        assert TextEncoding(without_eos, config).end == expected

    @pytest.mark.parametrize("config", [None, []])
    def test_none(self, without_eos, config) -> None:
        with pytest.raises(UserError, match="no EOS token"):
            _ = TextEncoding(without_eos, config).end


@pytest.fixture
def without_eos(tokenizer):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)


class Refusing:
    """A tokenizer whose own code does not take every text."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, texts: list[str], **options: Any) -> Any:
        if any("three" in text for text in texts):
            raise KeyError("no token\nfor this")
        return self.tokenizer(texts, **options)


def test_a_refused_document_is_told_with_its_row(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("one", "", "two three", "four")))
    with pytest.raises(UserError) as caught:
        list(encode(documents(str(path)), Refusing(tokenizer)))
    assert str(caught.value).startswith(f"'{path}', line 3: the tokenizer refuses it: ")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="text 'three blind mice': the tokenizer refuses it"):
        list(encode(["one", "three blind mice"], Refusing(tokenizer)))


def test_a_vocabulary_without_the_unknown_token_refuses_in_one_line(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"one": 0, "two": 1}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    path = tmp_path / "a.csv"
    path.write_text("text\none two\ntwo three\n")
    with pytest.raises(UserError, match=r"'.*a\.csv', line 3: the tokenizer refuses it: .*UNK"):
        list(encode(documents(str(path)), PreTrainedTokenizerFast(tokenizer_object=words)))


def test_a_document_that_makes_the_tokenizer_panic_is_told_with_its_row(tmp_path: Path) -> None:
    from tokenizers import Regex, Tokenizer, models, normalizers
    from transformers import PreTrainedTokenizerFast

    giving_up = Tokenizer(models.BPE({"a": 0, "!": 1}, []))
    giving_up.normalizer = normalizers.Replace(Regex("(a+)+$"), "a")
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("aaa", "a" * 40 + "!")))
    with pytest.raises(UserError, match=r"'.*a\.jsonl', line 2: the tokenizer refuses it: .*retry-limit"):
        list(encode(documents(str(path)), PreTrainedTokenizerFast(tokenizer_object=giving_up)))
