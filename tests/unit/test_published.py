"""What leaves this machine names models and files without the directories they are in."""

from pathlib import Path
from typing import Any

import pytest

from tracenas.models.checkpoints.card import model_card
from tracenas.models.checkpoints.published import published, published_facts
from tracenas.models.checkpoints.written_config import write_config
from tracenas.rundir import read_json


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    (tmp_path / "a,b=1.jsonl").touch()
    (tmp_path / "text.jsonl").touch()


SNAPSHOT = "/home/somebody/.cache/huggingface/hub/models--org--name/snapshots/0123456789abcdef"
NAMES = {
    "": "",
    "org/name": "org/name",
    "fineweb-edu": "fineweb-edu",
    "org/data:config@train": "org/data:config@train",
    "/home/somebody/models/Llama": "Llama",
    "/home/somebody/models/Llama/": "Llama",
    "~/models/Llama": "Llama",
    "../Llama": "Llama",
    "models/tiny": "tiny",
    "models/gone/tiny": "tiny",
    SNAPSHOT: "org/name",
    SNAPSHOT + "/": "org/name",
    "/data/a.jsonl=0.7,./b.txt=0.3,org/data=1": "a.jsonl=0.7,b.txt=0.3,org/data=1",
    "a,b=1.jsonl": "a,b=1.jsonl",
    "https://host.example/x/y": "https://host.example/x/y",
}


@pytest.mark.parametrize("name", NAMES)
def test_names(name: str) -> None:
    assert published(name) == NAMES[name]


def test_the_working_directory_has_a_name_too(tmp_path: Path) -> None:
    assert published(".") == tmp_path.name


def test_facts() -> None:
    facts = {"data": "/x/a.txt", "out": Path("/y/z"), "of": [1, None, "/q/r", 0.5], "more": {"teacher": SNAPSHOT}}
    expected = {"data": "a.txt", "out": "z", "of": [1, None, "r", 0.5], "more": {"teacher": "org/name"}}
    assert published_facts(facts) == expected


@pytest.mark.parametrize(("base", "told"), [("models/tiny", None), (SNAPSHOT, "org/name"), ("org/name", "org/name")])
def test_the_card_names_a_base_that_others_can_find(base: str, told: str | None) -> None:
    from tracenas.families import Options, config_family
    from tracenas.space.architecture import Layer

    config: dict[str, Any] = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "vocab_size": 8}
    config |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    blocks = config_family(config).blocks(config, Options())
    layers = [Layer((("heads", 1), ("channels", 64)))]
    card = model_card("p", base, blocks, layers, serving="", parameters=(2, 1), command="tracenas")
    assert f"`{told or 'tiny'}`, pruned by tracenas" in card
    assert ("base_model: org/name" in card) == (told is not None)
    assert "somebody" not in card and "models/" not in card


def test_config_json_says_no_path(tmp_path: Path) -> None:
    write_config(tmp_path, {"_name_or_path": "/home/somebody/Llama", "model_type": "llama"})
    assert read_json(tmp_path / "config.json") == {"_name_or_path": "Llama", "model_type": "llama"}
