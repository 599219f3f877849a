"""Models of a hub on loopback on the command line: a run keeps to the commit that it began with."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import FakeHub, fake_hub, use_hub
from tiny import save_tiny, save_words

from tracenas.cli import invoke
from tracenas.rundir import read_json

pytestmark = pytest.mark.integration

SETTINGS = ["--threads", "1", "--params", "60%", "--samples", "4", "--seq-len", "16", "--population", "4"]
SETTINGS += ["--elites", "2", "--iterations", "2", "--proxy", "loss", "--start", "none"]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub() as server:
        use_hub(server.url, tmp_path / "cache", monkeypatch)
        yield server


@pytest.fixture
def moving(hub: FakeHub, tmp_path: Path, tokenizer: object) -> str:
    """The commit that branch `dev` of `org/tiny` stands at; `later` holds what it moves to."""
    first = save_tiny(tmp_path / "first", "llama", tokenizer)
    save_tiny(tmp_path / "later", "llama", tokenizer, intermediate_size=48)
    save_words(tmp_path / "text.txt", 3000)
    return hub.add("org/tiny", first, "dev")


def test_a_run_keeps_to_its_commit(
    hub: FakeHub, moving: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    search = ["search", "org/tiny@dev", "--data", str(tmp_path / "text.txt"), "--out", str(run), *SETTINGS, "--json"]
    assert invoke(search) == 0, capsys.readouterr().err
    assert read_json(run / "hub.json") == {"org/tiny@dev": moving}
    assert read_json(run / "best.json")["provenance"]["hub"] == {"org/tiny@dev": moving}
    first = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert hub.add("org/tiny", tmp_path / "later", "dev") != moving
    assert invoke([*search, "--resume"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["architecture"] == first["architecture"]

    out = tmp_path / "pruned"
    prune = ["prune", "org/tiny@dev", "--arch", str(run / "best.json"), "--out", str(out), "--threads", "1"]
    assert invoke(prune) == 0, capsys.readouterr().err
    card = (out / "README.md").read_text()
    assert "base_model: org/tiny\n" in card
    assert f"`org/tiny@{moving}`, pruned by tracenas" in card
    assert f"tracenas prune org/tiny@{moving} --out pruned --arch best.json" in card
    assert str(tmp_path) not in card
    assert invoke(["plan", "org/tiny@dev"]) == 0  # the branch as it is now
