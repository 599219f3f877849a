"""What commands print: every name as it stands, and every command so that it can be copied."""

import io
import shlex
from pathlib import Path

import pytest
from rich.console import Console

from tracenas import cli
from tracenas.errors import UserError
from tracenas.models.checkpoints.serving import serving_section
from tracenas.reporting.progress import SearchProgress, phase
from tracenas.reporting.terminal import Table, print_table

NAMES = ("x[/y]", "[red]", "a[b]c", "/r/[/tmp/x]", ":smile:", "[link=x]")


@pytest.mark.parametrize("name", NAMES)
def test_tables_show_names_as_they_are(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_table(Table(f"plan for {name}", ("", name), [(name, "1"), ("long", "y" * 900)]))
    shown = capsys.readouterr().out
    assert shown.count(name) == 3 and "y" * 900 in shown


@pytest.mark.parametrize("name", NAMES)
def test_progress_shows_names_as_they_are(name: str) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=200)
    with phase(f"bench {name}", 2, console=console) as steps:
        steps.advance(2)
    with SearchProgress(2, label=name, console=console) as display:
        display.update(0, 1, 4, -1.0, None, 0)
    assert out.getvalue().count(name) >= 2


def test_resume_commands_can_be_copied(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.app, "main", interrupted)
    argv = ["search", "my model", "--data", "a b.txt", "--params", "60%", "--out", "x[/y] $HOME; 'z'"]
    assert cli.invoke(argv) == 130
    command = capsys.readouterr().err.strip().split("go on with: ", 1)[1]
    assert shlex.split(command) == ["tracenas", *argv, "--resume"]


@pytest.mark.parametrize("name", ["my model", 'quote"s', "x[/y]", "$HOME"])
def test_commands_of_a_card_can_be_copied(name: str) -> None:
    section = serving_section(name, {"model_type": "llama"}, "stock")
    commands = [block.split("\n```")[0] for block in section.split("```sh\n")[1:]]
    assert [shlex.split(c) for c in commands] == [
        ["vllm", "serve", name],
        ["tracenas", "export", name, "--format", "gguf", "--out", f"{Path(name).name}.gguf"],
    ]
    code = section.split("```python\n")[1].split("\n```")[0]
    seen: list[str] = []

    class Auto:
        @staticmethod
        def from_pretrained(path: str) -> None:
            seen.append(path)

    exec("\n".join(code.splitlines()[2:]), {"AutoModelForCausalLM": Auto, "AutoTokenizer": Auto})
    assert seen == [name, name]


def test_arguments_that_are_not_unicode_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.invoke(["plan", str(tmp_path / "a\udcff")]) == 2
    line = capsys.readouterr().err.strip()
    assert "not UTF-8" in line and "\\udcff" in line and UserError.__name__ not in line
