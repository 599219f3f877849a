"""The model card: valid front matter, the architecture layer by layer, how to load it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tracenas.commands.prune.card import _REALISATION, _UNITS, _command
from tracenas.config import PruneConfig
from tracenas.families import Block, Options, config_family
from tracenas.models.checkpoints.card import model_card
from tracenas.models.checkpoints.readme import read_front_matter
from tracenas.space.architecture import Architecture

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 2048,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
LAYERS = [{"heads": 2, "channels": 1024}, {"skip": True}, {"heads": 0, "channels": 2048}]


def blocks() -> tuple[Block, ...]:
    return config_family(CONFIG).blocks(CONFIG, Options())


def card(**changes: Any) -> str:
    arguments: dict[str, Any] = {"serving": "## Serving\n\nSo.", "parameters": (1000, 600), **changes}
    base = arguments.pop("base", "org/model")
    return model_card("pruned", base, blocks(), Architecture.from_json({"layers": LAYERS}).layers, **arguments)


def front(text: str) -> dict[str, Any]:
    opening, matter, _ = text.split("---\n", 2)
    assert opening == ""
    return dict(yaml.safe_load(matter))


def test_front_matter() -> None:
    found = front(card(license="apache-2.0"))
    assert found["base_model"] == "org/model" and found["license"] == "apache-2.0"
    assert found["library_name"] == "transformers" and found["tags"] == ["tracenas", "pruned"]
    assert "license" not in front(card())


@pytest.mark.parametrize("base", ["/models/llama", "./a", "a/b/c", "llama"])
def test_a_directory_is_no_base_model(base: str) -> None:
    assert "base_model" not in front(card(base=base))


def test_architecture_layer_by_layer() -> None:
    rows = [line for line in card().splitlines() if line.startswith("| ")]
    assert rows[:5] == [
        "| block | heads | channels | now |",
        "| --: | --: | --: | --: |",
        "| 0 | 2 of 4 | 1,024 of 2,048 | 0 |",
        "| 1 | – | – | skipped |",
        "| 2 | bypassed | 2,048 of 2,048 | 1 |",
    ]


def test_numbers_command_and_provenance() -> None:
    numbers = {"perplexity": 12.345678, "tokens": 65536, "protocol": "windows"}
    text = card(numbers=numbers, command="tracenas prune org/model", provenance={"seed": 3})
    for part in (
        "600 of 1,000 parameters (60.0%)",
        "2 of 3 blocks",
        "| perplexity | 12.3457 |",
        "| tokens | 65,536 |",
    ):
        assert part in text
    assert "tracenas prune org/model" in text and "seed: 3" in text


def test_stubs_are_said() -> None:
    text = card(stubs=12)
    assert "| 2 | bypassed (zeros) | 2,048 of 2,048 | 1 |" in text
    assert "| of these, zeros in place of removed attention | 12 |" in text
    assert "zeros" not in card()


def test_license_of_the_base(tmp_path: Path) -> None:
    assert read_front_matter(None) == {} and read_front_matter(tmp_path) == {}
    readme = tmp_path / "README.md"
    for text, expected in {
        "---\nlicense: mit\ntags: [a]\n---\n# Model\n": "mit",
        "# Model\n---\nlicense: mit\n---\n": None,
        "---\nlicense: [mit\n---\n": None,
        "---\nlicense: mit\n": None,
        "---\nlicense: mit\ndate: 2024-13-45\n---\n": None,
        "\ufeff---\r\nlicense: mit\r\n---\r\n# Model\r\n": "mit",
    }.items():
        readme.write_text(text, encoding="utf-8")
        assert read_front_matter(tmp_path).get("license") == expected


@pytest.mark.parametrize(
    ("settings", "searched", "words"),
    [
        ({"arch": "run/best.json"}, True, "--arch best.json"),
        ({"arch": "a.json", "bos": "on", "saliency": "obs", "kv_groups": True, "data": "/d/t.txt", "ridge": 0.01},
         False,
         "--arch a.json --data t.txt --saliency obs --kv-groups --bos on --ridge 0.01"),
        ({"arch": "a.json", "seed": 3, "saliency": "obs", "save_dtype": "fp16", "compensate": "auto"}, True,
         "--arch a.json --compensate auto --save-dtype fp16"),
        ({"method": "fisher", "params": "60%", "data": "/d/t.txt", "gamma": None, "stub_removed_attention": True,
          "compensate_samples": 12, "ridge_scale": "mean", "sensitivity": "/d/table.safetensors"}, False,
         "--data t.txt --method fisher --params 60% --compensate-samples 12 --ridge-scale mean --sensitivity "
         "table.safetensors --stub-removed-attention"),
    ],
)  # fmt: skip
def test_the_command_has_every_setting_that_decides_the_checkpoint(
    settings: dict[str, Any], searched: bool, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And of a run's architecture none that the run has decided."""
    monkeypatch.chdir(tmp_path)
    for name in ("best.json", "a.json"):
        (tmp_path / name).touch()
    if "arch" in settings:
        settings = {**settings, "arch": tmp_path / Path(settings["arch"]).name}
    command = _command(PruneConfig(model="org/m", out=tmp_path / "pruned", threads=1, **settings), searched)
    assert " ".join(command) == f"tracenas prune org/m --out pruned {words}"


def test_every_setting_of_prune_is_in_the_command_or_changes_nothing() -> None:
    elsewhere = {"model", "data", "arch", "out", "stub_removed_attention", "resume"}
    of_the_machine = {"device", "threads", "batch", "host_memory", "device_memory", "trust_remote_code"}
    assert {*_UNITS, *_REALISATION} | elsewhere | of_the_machine == set(PruneConfig.model_fields)
