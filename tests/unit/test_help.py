"""Help texts: accepted values, plug-ins included; required settings first; sentences; quick, without torch."""

import subprocess
import sys
from typing import Any, get_args

import pytest

from tracenas import config as configs
from tracenas.cli import COMMANDS, invoke
from tracenas.config.accepted import accepted
from tracenas.options import setting_parameters
from tracenas.proxies import PROXIES, Proxy
from tracenas.registry import Registry
from tracenas.saliency import SALIENCIES
from tracenas.saliency.allocation import ALLOCATIONS
from tracenas.saliency.methods import METHODS
from tracenas.saliency.starts import STARTS
from tracenas.saliency.unstructured import METRICS
from tracenas.space.deploy import PRESETS
from tracenas.strategies import STRATEGIES

KINDS = {name: getattr(configs, command.config) for name, command in COMMANDS.items()}
SETTINGS = [(name, setting) for name, kind in KINDS.items() for setting in configs.setting_names(kind)]


def shown(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    """A command's help, its lines joined."""
    assert invoke([*command.split(), "--help"]) == 0
    return " ".join(capsys.readouterr().out.split())


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
def test_required_settings_come_first(command: str) -> None:
    required = ["[required]" in (p.help or "") for p in setting_parameters(KINDS[command])[1:]]
    assert required == sorted(required, reverse=True)


def test_help_is_quick() -> None:
    """What takes seconds to import is not: torch and what stands on it."""
    code = (
        "import sys\nfrom tracenas.cli import COMMANDS, invoke\n"
        "for name in ('', *COMMANDS): assert invoke([*name.split(), '--help']) == 0\n"
        "print(*sorted({'torch', 'transformers', 'scipy', 'datasets', 'safetensors'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""
