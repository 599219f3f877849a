import datasets
import pytest
from datasets import IterableDataset

from tracenas.data import hub
from tracenas.data.encoding import TextEncoding
from tracenas.data.held_out import windows
from tracenas.data.sources import documents
from tracenas.errors import UserError


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """Replaces `datasets.load_dataset`: every data set has `ROWS`; returns what was asked for."""
    calls: list[tuple] = []

    def load_dataset(path: str, name: str | None = None, split: str | None = None, streaming: bool = False):
        calls.append((path, name, split, streaming))
        return IterableDataset.from_generator(lambda: iter(ROWS))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


ROWS = [{"text": f"document {number}", "url": "x"} for number in range(40)] + [{"text": "", "url": "y"}]
WIKITEXT = [
    "",
    " = One = \n",
    "",
    " first\n",
    " = = Section = = \n",
    " second\n",
    " = Two = Three = \n",
    " third\n",
]


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("fineweb-edu", ("HuggingFaceFW/fineweb-edu", "sample-100BT", "train")),
        ("fineweb-edu:sample-10BT", ("HuggingFaceFW/fineweb-edu", "sample-10BT", "train")),
        ("wikitext2", ("Salesforce/wikitext", "wikitext-2-raw-v1", "train")),
        ("c4@validation", ("allenai/c4", "en", "validation")),
        ("org/name", ("org/name", None, "train")),
        ("org/name:some-config", ("org/name", "some-config", "train")),
        ("org/name@test", ("org/name", None, "test")),
        ("org/na.me:v1.0@train[:10%]", ("org/na.me", "v1.0", "train[:10%]")),
    ],
)
def test_what_is_loaded(calls: list[tuple], name: str, asked: tuple) -> None:
    next(documents(name))
    assert calls == [(*asked, True)]


def test_rows_in_order_without_empty_ones(calls: list[tuple]) -> None:
    assert list(documents("c4")) == [f"document {number}" for number in range(40)]
    assert list(documents("c4", text_field="url")) == ["x"] * 40 + ["y"]


def test_shuffled_reproducibly(calls: list[tuple]) -> None:
    first = list(documents("c4", seed=3))
    assert first == list(documents("c4", seed=3)) != list(documents("c4", seed=4))
    assert sorted(first) == sorted(documents("c4"))


def test_missing_field(calls: list[tuple]) -> None:
    with pytest.raises(UserError, match="data set 'allenai/c4:en@train' has no field 'body': its fields are text, url"):
        next(documents("c4", text_field="body", seed=0))
    with pytest.raises(UserError, match="data set 'allenai/c4:en@train', row 0 has no field 'body'"):
        next(documents("c4", text_field="body"))


def test_wikitext_rows_become_articles(calls: list[tuple], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.ROWS", [{"text": line} for line in WIKITEXT])
    one, two = " = One = \n first\n = = Section = = \n second\n", " = Two = Three = \n third\n"
    assert list(documents("wikitext2")) == [one, two]
    assert sorted(documents("wikitext2", seed=0)) == sorted([one, two])


def test_held_out_is_the_evaluation_split(calls: list[tuple], monkeypatch: pytest.MonkeyPatch, tokenizer) -> None:
    monkeypatch.setattr(f"{__name__}.ROWS", [{"text": line} for line in WIKITEXT])
    text = "\n\n".join(WIKITEXT)
    assert tokenizer.decode(windows("wikitext2", TextEncoding(tokenizer), len(text))[0]) == text
    windows("c4", TextEncoding(tokenizer), 8)
    windows("c4@train", TextEncoding(tokenizer), 8)
    windows("wikitext2", TextEncoding(tokenizer), len(text), use="validation")
    assert [split for _, _, split, _ in calls] == ["test", "validation", "train", "validation"]


def test_held_out_reads_a_stream_no_further_than_needed(monkeypatch: pytest.MonkeyPatch, tokenizer) -> None:
    def endless():
        while True:
            yield {"text": "0123456789"}

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: IterableDataset.from_generator(endless))
    assert windows("c4", TextEncoding(tokenizer), 8, limit=5).shape == (5, 8)


@pytest.mark.parametrize("error", [ConnectionError("no route\nto host"), ValueError("Bad split: x"), RuntimeError()])
def test_failure_is_one_line_with_the_name(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def load_dataset(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError) as caught:
        next(documents("fineweb-edu"))
    message = str(caught.value)
    assert "'HuggingFaceFW/fineweb-edu:sample-100BT@train' cannot be read" in message and "\n" not in message
    assert (str(error).split("\n")[0] or "RuntimeError") in message


def test_failure_within_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken():
        yield {"text": "one"}
        raise OSError("connection lost")

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: IterableDataset.from_generator(broken))
    stream = documents("c4")
    assert next(stream) == "one"
    with pytest.raises(UserError, match="connection lost"):
        next(stream)


@pytest.mark.parametrize("name", ["wikitext3", "unknown", "a b/c", "org/name@", "org/name:"])
def test_neither_known_nor_an_id(name: str) -> None:
    with pytest.raises(UserError, match="neither an existing file nor a known data set"):
        hub.parse(name)
