"""A file of results that cannot be written, or is somebody else's, is refused before the work, and stays as it is."""

from pathlib import Path
from typing import Any

import pytest
from command_lines import refused
from tiny import save_tiny, save_words

import tracenas
from tracenas.cli import invoke
from tracenas.commands import COMMANDS

pytestmark = pytest.mark.integration

SMALL = ["--samples", "4", "--seq-len", "32"]
FILES = {
    "sensitivity": ("x.safetensors", ["--data", "{text}", *SMALL, "--threads", "1"]),
    "select-calibration": ("x.safetensors", ["--data", "{text}", "--params", "70%", *SMALL, "--threads", "1"]),
    "eval": ("x.json", ["--text", "{text}", "--seq-len", "32", "--windows", "2", "--threads", "1"]),
    "bench": ("x.json", ["--prompt", "8", "--new-tokens", "2", "--trials", "1", "--no-memory", "--threads", "1"]),
    "measure": ("x.json", ["--points", "1:8:8", "--new-tokens", "2", "--turns", "1", "--threads", "1"]),
    "export": ("x.gguf", ["--tokenizer", "none"]),
    "best": ("x.json", ["--params", "75%"]),
    "report": ("x.html", []),
}
"""Of a command: the file, and what it needs."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A tiny model, a text, and a run."""
    home = tmp_path_factory.mktemp("files")
    save_tiny(home / "llama", "llama", tokenizer)
    save_words(home / "text.txt", 1500)
    more = ["--population", "4", "--elites", "2", "--iterations", "1", "--threads", "1"]
    argv = ["search", str(home / "llama"), "--data", str(home / "text.txt"), "--params", "75%", *SMALL, *more]
    assert invoke([*argv, "--out", str(home / "run")]) == 0
    return home


def argv(name: str, home: Path, out: Path) -> list[str]:
    subject = home / ("run" if name in ("best", "report") else "llama")
    return [name, str(subject), *(part.format(text=home / "text.txt") for part in FILES[name][1]), "--out", str(out)]


def test_the_commands_are_all_of_them() -> None:
    assert set(FILES) == {name for name, command in COMMANDS.items() if command.file}


@pytest.mark.parametrize("name", FILES)
def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    name: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tracenas.commands.import_module", lambda _: pytest.fail("the work has begun"))
    file = FILES[name][0]
    (tmp_path / "text").write_text("mine")
    (tmp_path / file).mkdir()
    for out, why in (
        (tmp_path / file, "is a directory; expected a file"),
        (tmp_path / "text" / file, "File exists"),
        (tmp_path / "text" / "a" / file, "Not a directory"),
        (Path("/dev/null"), "is a device; expected a file"),
        (Path("/proc/no/such") / file, "No such file"),
    ):
        assert f"out {out}: {why}" in refused(capsys, argv(name, home, out))
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted(["text", file])
    assert (tmp_path / "text").read_text() == "mine"


@pytest.mark.parametrize("name", sorted(FILES.keys() - {"report"}))
def test_a_file_of_somebody_else_is_not_replaced(
    name: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / FILES[name][0]
    for mine in ((home / "llama" / "model.safetensors").read_bytes(), b'{"mine": 1}', b""):
        out.write_bytes(mine)
        line = refused(capsys, argv(name, home, out))
        assert f"out {out}: " in line and ("remove it" in line)
        assert out.read_bytes() == mine


@pytest.mark.parametrize("name", ["sensitivity", "eval", "bench", "best"])
def test_a_file_of_its_own_is_made_again(name: str, home: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / FILES[name][0]
    for _ in range(2):
        assert invoke(argv(name, home, out)) == 0
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_the_functions_say_the_same(home: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("mine")
    with pytest.raises(tracenas.UserError, match="File exists"):
        tracenas.best(home / "run", params="75%", out=tmp_path / "text" / "x.json")


def test_a_full_disk_is_the_users_to_read_in_python_too(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "scratch")

    monkeypatch.setattr("tracenas.commands.score.score", full)
    arch = home / "run" / "best.json"
    with pytest.raises(tracenas.UserError, match="cannot write or read scratch: No space left"):
        tracenas.score(home / "llama", arch=arch, data=home / "text.txt")


def test_a_text_in_the_place_of_a_name_is_told(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "To be, or not to be. " * 300
    argv = ["search", str(home / "llama"), "--data", text, "--params", "70%", "--out", str(tmp_path / "run")]
    line = refused(capsys, argv)
    assert "cannot write or read To be" in line and line.endswith("…: File name too long") and len(line) < 300
    with pytest.raises(tracenas.UserError, match="File name too long"):
        tracenas.best(text)
