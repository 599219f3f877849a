"""Every `tracenas` command line in README, docs and recipes is accepted: its options exist, its values are valid."""

import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from documented import PAGES, command_name, documented, settings_file, variants

from tracenas import cli, commands
from tracenas import config as configs


@pytest.mark.parametrize(("page", "line"), documented())
def test_the_command_is_accepted(page: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []
    outcome = SimpleNamespace(show=lambda: None, to_json=dict)

    class Commands:
        def __getattr__(self, name: str) -> Any:
            return lambda settings: called.append(settings) or outcome

    monkeypatch.setattr(commands, "import_module", lambda _: Commands())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(
        "model: m\ndata: text\nparams: 60%\ntext: t\nout: run\n"
        "recover: {method: pretrain, data: t, tokens: 1M}\nbench: {}\n"
    )
    (tmp_path / "front.yaml").write_text(settings_file("front.yaml"))
    for words in variants(line):
        assert cli.invoke(words) == 0, words
    assert len(called) == len(variants(line))


def strays(words: Sequence[str]) -> list[str]:
    """Words of a command line that give a setting as `key=value`, or under a former name."""
    kind = commands.COMMANDS[command_name(words)].kind
    former = {*kind.former, *(old for section in kind.sections.values() for old in section.former)}
    out = []
    for word in words:
        section, dot, key = word.partition("=")[0].lstrip("-").replace("-", "_").partition(".")
        plain = "=" in word and not word.startswith("-") and not dot and section in kind.model_fields
        if (plain and section not in kind.sections) or (key or section) in former:
            out.append(word)
    return out


def test_documents_have_one_grammar() -> None:
    """Settings are options, those of a section `section.key=value`; and none has its former name."""
    for page, line in documented():
        for words in variants(line):
            assert not strays(words), f"{page}: {line}"
    settings = {
        name for command in commands.COMMANDS.values() for name in getattr(configs, command.config).model_fields
    }
    for page in PAGES:
        for key, value in re.findall(r"`([a-z_]+)=([^`\s]+)`", page.read_text(encoding="utf-8")):
            assert key not in settings or value == "True", f"{page.name}: {key}={value}"
    assert strays(["run", "m", "--eval-text", "t", "samples=3", "bench=null", "recover.eval_windows=3"]) == [
        "--eval-text",
        "samples=3",
        "recover.eval_windows=3",
    ]


def test_a_wrong_option_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.invoke(["search", "m", "--data", "t", "--params", "60%", "--out", "run", "--populaton", "3"]) == 2
    assert len(documented()) > 35
