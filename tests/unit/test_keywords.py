"""Keywords of the Python functions: those of the settings as they are, and checked by mypy where they are used."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import tracenas
from tracenas import config
from tracenas.commands import COMMANDS
from tracenas.keywords import further, pruning

ROOT = Path(__file__).parents[2]


def script() -> Any:
    spec = importlib.util.spec_from_file_location("keywords_script", ROOT / "scripts" / "keywords.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_files_are_those_that_the_script_writes() -> None:
    for name, text in script().files().items():
        written = (ROOT / "src" / "tracenas" / "keywords" / name).read_text(encoding="utf-8")
        assert written == text, f"{name} is old: python scripts/keywords.py"


@pytest.mark.parametrize("function", sorted(script().COMMAND_OF))
def test_every_setting_is_a_keyword(function: str) -> None:
    """Beside the function's own parameters; nothing else is, and no function is without them."""
    made = script()
    name = "".join(part.title() for part in function.split("_")) + "Options"
    keywords = set(get_type_hints(getattr(pruning, name, None) or getattr(further, name)))
    parameters = made.inspect.signature(getattr(tracenas, function)).parameters
    kind = getattr(config, COMMANDS[made.COMMAND_OF[function]].config)
    assert keywords | (set(parameters) & set(kind.model_fields)) == set(config.setting_names(kind))
    assert not keywords & set(parameters)
    assert parameters["settings"].annotation == f"Unpack[{name}]"


def test_functions_that_take_settings_are_all_there() -> None:
    taking = {
        name
        for name in tracenas.__all__
        if callable(one := getattr(tracenas, name))
        and not isinstance(one, type)
        and "settings" in script().inspect.signature(one).parameters
    }
    assert taking == set(script().COMMAND_OF)


@pytest.mark.slow
def test_mypy_tells_a_keyword_that_is_wrong(tmp_path: Path) -> None:
    code = "import tracenas\ntracenas.search('m', data='d', params='60%', out='o', {}).show()\n"
    for argument, message in {
        "populaton=3": 'Unexpected keyword argument "populaton"',
        "population='three'": 'Argument "population" to "search" has incompatible type "str"',
        "race=True, start=['fisher', 'mlp'], exclude=None, minutes=3": "Success",
    }.items():
        file = tmp_path / "used.py"
        file.write_text(code.format(argument))
        done = subprocess.run(
            [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), str(file)],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
        )
        assert message in done.stdout, done.stdout + done.stderr
