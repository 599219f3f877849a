"""Help texts: accepted values, plug-ins included; required settings first; sentences; quick, without torch."""

import subprocess
import sys
from typing import Any, get_args

import pytest
from click.shell_completion import ShellComplete

from tracenas import config as configs
from tracenas.cli import COMMANDS, app, invoke
from tracenas.config.accepted import accepted
from tracenas.config.groups import NEEDED, WANTED, groups
from tracenas.proxies import PROXIES, Proxy
from tracenas.registry import Registry
from tracenas.saliency import SALIENCIES
from tracenas.saliency.allocation import ALLOCATIONS
from tracenas.saliency.methods import METHODS
from tracenas.saliency.starts import STARTS
from tracenas.saliency.unstructured import METRICS
from tracenas.space.deploy import PRESETS
from tracenas.strategies import STRATEGIES
from tracenas.symbolic import KNOWN

KINDS = {name: getattr(configs, command.config) for name, command in COMMANDS.items()}
SETTINGS = [(name, setting) for name, kind in KINDS.items() for setting in configs.setting_names(kind)]


def shown(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    """A command's whole help, its lines joined."""
    assert invoke([*command.split(), "--help-all"]) == 0
    return " ".join(capsys.readouterr().out.split())


def options(command: str, flag: str, capsys: pytest.CaptureFixture[str]) -> set[str]:
    """The options that help lists, those of every command included."""
    assert invoke([*command.split(), flag]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("  -")]
    return {row[0].rstrip(",") for row in rows}


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("search", PROXIES),
        ("search", SALIENCIES),
        ("search", STRATEGIES),
        ("search", STARTS),
        ("search", PRESETS),
        ("prune", METHODS),
        ("prune", ALLOCATIONS),
        ("sparsify", METRICS),
        ("metric show", KNOWN),
        ("study", PROXIES),
    ],
)
def test_the_names_of_a_registry_are_listed(command: str, names: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert ", ".join(names) + "." in shown(command, capsys)


@pytest.mark.parametrize(
    ("command", "registry"),
    [("run", PROXIES), ("run", SALIENCIES), ("run", STRATEGIES), ("prune", ALLOCATIONS), ("sparsify", METRICS)],
)
def test_a_plug_in_is_listed(
    command: str, registry: Registry[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "zz_other" not in shown(command, capsys)
    monkeypatch.setitem(registry._loaded, "zz_other", Proxy("zz_other", lambda _: 0.0))
    assert "zz_other" in shown(command, capsys)


def test_accepted_values_are_those_of_the_type() -> None:
    init = accepted(configs.SearchConfig.model_fields["init"])
    assert init.values == get_args(configs.SearchConfig.model_fields["init"].annotation)
    assert init.placeholder == "auto|start|importance|uniform|random|nirvana"
    race, proxy = (accepted(configs.SearchConfig.model_fields[name]) for name in ("race", "proxy"))
    assert race.values == ("auto", "on", "off") and proxy.values == ("auto", *PROXIES) and proxy.several
    assert accepted(configs.PruneConfig.model_fields["arch"]).file
    assert accepted(configs.SearchConfig.model_fields["min_depth"]).placeholder == "N"


def test_every_setting_is_described_in_a_sentence() -> None:
    for command, setting in SETTINGS:
        text = KINDS[command].model_fields[setting].description
        assert text and text[0].isupper() and text.endswith(".") and len(text.split()) > 2, f"{command} {setting}"
        assert not text.startswith("Of "), f"{command} {setting}"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_groups_hold_every_setting_once(command: str) -> None:
    kind = KINDS[command]
    members = [name for names in groups(kind).values() for name in names]
    assert sorted(members) == sorted(set(configs.setting_names(kind)) - set(kind.sections))
    needed, positional = groups(kind)[NEEDED], configs.positional_setting(kind)[0]
    assert needed[:1] == [positional] * (bool(positional) and positional != kind.optional_positional)
    required = [kind.model_fields[name].is_required() for name in members]
    assert required == sorted(required, reverse=True) and all(required[: len(needed) - len(kind.needed)])


@pytest.mark.parametrize("command", COMMANDS)
def test_help_all_shows_every_setting_and_help_the_wanted_ones(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = KINDS[command]
    plain, everything = (options(command, flag, capsys) for flag in ("--help", "--help-all"))
    for title, names in groups(kind).items():
        flags = {f"--{name.replace('_', '-')}" for name in names if name != configs.positional_setting(kind)[0]}
        assert flags <= everything
        assert flags & plain == (flags if title in (NEEDED, WANTED) else set())
    assert len(plain) <= {"search": 14, "run": 18, "recover": 16, "prune": 12}.get(command, 18)


def test_further_stages_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert all(f" {section}.KEY=VALUE " in shown("run", capsys) for section in configs.RunConfig.sections)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("sel", {"select-calibration"}),
        ("metric ", {"search", "show"}),
        ("search m --effort ", {"quick", "normal", "thorough"}),
        ("search m --dtype b", {"bf16"}),
        ("search m --proxy kl", {"kl", "kl_compensated"}),
        ("search m --start fisher,m", {"fisher,mlp"}),
        ("prune m --method n", {"nirvana"}),
        ("study ablation m --proxy few_steps_", {"few_steps_compensated"}),
        ("sparsify m --metric wa", {"wanda"}),  # a path too: only where no name begins so
        ("run m recover.max_s", {"recover.max_steps="}),
        ("run m --recov", {"--recover-rivals"}),
        ("search m --eval-", set()),  # a former name
        ("run --micro", set()),
    ],
)
def test_values_are_completed(words: str, expected: set[str]) -> None:
    *before, incomplete = words.split(" ")
    items = ShellComplete(app, {}, "tracenas", "_TRACENAS_COMPLETE").get_completions(before, incomplete)
    assert {item.value for item in items} == expected


@pytest.mark.parametrize(
    "words", ["search mod", "search m --out o", "eval a b", "prune m --arch a", "recover m --data d"]
)
def test_paths_are_left_to_the_shell(words: str) -> None:
    *before, incomplete = words.split(" ")
    (item,) = ShellComplete(app, {}, "tracenas", "_TRACENAS_COMPLETE").get_completions(before, incomplete)
    assert (item.type, item.value) == ("file", incomplete)


def test_the_overview_imports_no_settings() -> None:
    code = (
        "import sys\nfrom tracenas.cli import invoke\nassert invoke(['--help']) == 0\n"
        "print(*sorted({'numpy', 'pydantic', 'yaml', 'rich', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""


def test_help_is_quick() -> None:
    """What takes seconds to import is not: torch and what stands on it."""
    code = (
        "import sys\nfrom tracenas.cli import COMMANDS, invoke\n"
        "for name in ('', *COMMANDS): assert invoke([*name.split(), '--help-all' if name else '--help']) == 0\n"
        "print(*sorted({'torch', 'transformers', 'scipy', 'datasets', 'safetensors'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""
