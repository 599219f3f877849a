"""Damaged files: every reader refuses in one line what it cannot read, and makes nothing of the size it announces."""

import pytest
from scripts_as_modules import load_script

FUZZ = load_script("fuzz")


@pytest.mark.parametrize("reader", sorted(FUZZ.READERS))
def test_damaged_files_are_read_or_refused(reader: str) -> None:
    count = 60 if reader == "model" else 200  # building a model takes a tenth of a second
    result = FUZZ.fuzz(reader, seed=1, count=count)
    assert result["failures"] == []
    assert result["read"] + result["refused"] == result["cases"] == count
    assert 0 < result["read"] < count


def test_a_traceback_and_a_message_that_says_nothing_are_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = [FUZZ.UserError(" \n"), KeyError("x")]

    def read(folder: object) -> None:
        raise errors.pop()

    monkeypatch.setitem(FUZZ.READERS, "architecture", FUZZ.Reader(lambda rng, folder: None, read))
    failures = FUZZ.fuzz("architecture", seed=0, count=2)["failures"]
    assert [f["error"].split(":")[0] for f in failures] == ["KeyError", "says nothing"]


def test_memory_that_grows_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    held = []
    grown = FUZZ.Reader(lambda rng, folder: None, lambda folder: held.append(b"x" * (1 << 20)))
    monkeypatch.setitem(FUZZ.READERS, "architecture", grown)
    monkeypatch.setattr(FUZZ, "LIMIT", -1)
    (failure,) = FUZZ.fuzz("architecture", seed=0, count=1)["failures"]
    assert "memory grew" in failure["error"]
