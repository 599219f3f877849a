"""Models of a hub on loopback on the command line: a run keeps to the commit that it began with."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import FakeHub, Repo, fake_hub, use_hub
from gguf import GGUFReader
from recovery_toys import log_of
from test_resume import interrupted
from tiny import save_tiny, save_words

from tracenas.cli import invoke
from tracenas.models.checkpoints.publishing import check_names
from tracenas.rundir import read_json

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),  # the hub's client, of its own requests
]

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

    journal = run / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:2]))  # as if it had been killed
    (run / "best.json").unlink()
    (run / "summary.json").unlink()
    assert invoke(["resume", str(run), "--json"]) == 0, capsys.readouterr().err
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["architecture"] == first["architecture"]
    assert len(journal.read_text().splitlines()) == len(lines)

    out = tmp_path / "pruned"
    prune = ["prune", "org/tiny@dev", "--arch", str(run / "best.json"), "--out", str(out), "--threads", "1"]
    assert invoke(prune) == 0, capsys.readouterr().err
    card = (out / "README.md").read_text()
    assert "base_model: org/tiny\n" in card
    assert f"`org/tiny@{moving}`, pruned by tracenas" in card
    assert f"tracenas prune org/tiny@{moving} --out pruned --arch best.json" in card
    assert "| calibration text | text.txt |" in card
    assert f"| calibration loss of the base | {read_json(run / 'base.json')['loss']:.6f} |" in card
    assert str(tmp_path) not in card
    check_names([out / "README.md", out / "config.json"])
    assert invoke(["plan", "org/tiny@dev"]) == 0  # the branch as it is now


def sentences(seed: int, count: int) -> dict[str, bytes]:
    """Files of a data set."""
    rng = random.Random(seed)
    rows = [" ".join(rng.choices(("small", "model", "prunes", "layers", "of", "text"), k=12)) for _ in range(count)]
    return {"README.md": b"", "data.jsonl": "".join(json.dumps({"text": row}) + "\n" for row in rows).encode()}


def test_other_budgets_of_a_run_keep_to_its_commit(
    hub: FakeHub, moving: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, point = tmp_path / "run", tmp_path / "elsewhere" / "point.json"
    search = ["search", "org/tiny@dev", "--data", str(tmp_path / "text.txt"), "--out", str(run), *SETTINGS]
    assert invoke(search) == 0, capsys.readouterr().err
    assert hub.add("org/tiny", tmp_path / "later", "dev") != moving
    best = ["best", str(run), "--params", "60%", "--out", str(point), "--json"]
    capsys.readouterr()
    assert invoke(best) == 0, capsys.readouterr().err
    found = json.loads(capsys.readouterr().out)
    assert read_json(point)["provenance"]["hub"] == {"org/tiny@dev": moving}
    prune = ["prune", "org/tiny@dev", "--arch", str(point), "--out", str(tmp_path / "pruned"), "--compensate", "auto"]
    assert invoke([*prune, "--json"]) == 0, capsys.readouterr().err
    assert json.loads(capsys.readouterr().out)["params"] == found["costs"]["params"]


def test_a_recovery_keeps_to_the_commit_of_its_data(
    hub: FakeHub, tmp_path: Path, tokenizer: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_tiny(tmp_path / "model", "llama", tokenizer)
    repo = hub.datasets["org/text"] = Repo()
    first = repo.commit(sentences(0, 60))
    train = ["recover", str(model), "--method", "pretrain", "--data", "org/text", "--max-steps", "4", "--windows", "2"]
    train += ["--global-batch", "2", "--seq-len", "16", "--save-every", "1", "--log-every", "1", "--threads", "1"]
    assert invoke([*train, "--out", str(tmp_path / "calm")]) == 0
    assert interrupted(monkeypatch, [*train, "--out", str(tmp_path / "stopped")], 4) == 130
    assert read_json(tmp_path / "stopped" / "hub.json") == {"datasets/org/text": first}
    repo.commit(sentences(1, 60))
    assert invoke(["resume", str(tmp_path / "stopped")]) == 0
    assert log_of(tmp_path / "stopped") == log_of(tmp_path / "calm")
    assert invoke([*train, "--out", str(tmp_path / "later")]) == 0
    assert log_of(tmp_path / "later") != log_of(tmp_path / "calm")


def test_later_stages_of_a_run_keep_to_the_commit_of_its_text(
    hub: FakeHub, tmp_path: Path, tokenizer: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text is read first after the search; what was found out then is known when the run goes on."""
    model, run = save_tiny(tmp_path / "model", "llama", tokenizer), tmp_path / "run"
    hub.datasets |= {name: Repo() for name in ("org/text", "org/held-out")}
    expected = {f"datasets/{name}": repo.commit(sentences(len(name), 60)) for name, repo in hub.datasets.items()}
    argv = ["run", str(model), "--data", "org/text", "--text", "org/held-out", "--out", str(run), *SETTINGS]
    argv += ["--windows", "8", "--random-architectures", "0", "--compensate", "none", "eval.windows=8"]

    def evaluate(_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("tracenas.commands.evaluate.evaluate", evaluate)
        assert invoke(argv) == 130
    assert read_json(run / "hub.json") == expected
    hub.datasets["org/held-out"].commit(sentences(9, 60))
    assert invoke(["resume", str(run)]) == 0
    base = read_json(run / "evaluation.json")["results"][0]
    assert base["perplexity"] == pytest.approx(read_json(run / "comparison.json")[0]["perplexity"], rel=1e-6)


def test_export_takes_a_model_on_the_hub(hub: FakeHub, tmp_path: Path, tokenizer: object) -> None:
    hub.add("org/tiny", save_tiny(tmp_path / "tiny", "llama", tokenizer))
    assert invoke(["export", "org/tiny@main", "--tokenizer", "none", "--out", str(tmp_path / "tiny.gguf")]) == 0
    name = GGUFReader(tmp_path / "tiny.gguf").get_field("general.name")
    assert name is not None and name.contents() == "tiny"


@pytest.fixture
def checkpoint(tmp_path: Path, tokenizer: object) -> Path:
    """A checkpoint with a card, beside files that are not for the hub."""
    directory = save_tiny(tmp_path / "pruned", "llama", tokenizer)
    body = "# pruned\n\n## Serving\n\nload `pruned`\n\n## How it was made\n\nNot recorded.\n"
    (directory / "README.md").write_text(f"---\ntags:\n- tracenas\n---\n\n{body}")
    (directory / "recover.yaml").write_text(f"out: {directory}\n")
    (directory / "checkpoints").mkdir()
    (directory / "checkpoints" / "model.safetensors").write_bytes(b"")
    return directory


def said(capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    assert invoke(words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    return error.removeprefix("tracenas: ")


def test_push_puts_the_checkpoint_there_and_nothing_else(
    hub: FakeHub, checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
    push = ["push", str(checkpoint), "org/small", "--json"]
    assert invoke([*push, "--dry-run"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert not listed["pushed"] and hub.asked == []
    assert listed["left_out"] == ["checkpoints", "recover.yaml"]
    assert invoke([*push, "--private"]) == 0
    pushed = json.loads(capsys.readouterr().out)
    repo = hub.models["org/small"]
    assert repo.private and repo.refs["main"] == pushed["commit"]
    files = repo.commits[pushed["commit"]]
    assert set(pushed["files"]) == set(listed["files"]) == files.keys() - {".gitattributes"}
    for name in files.keys() - {".gitattributes", "README.md"}:
        assert files[name] == (checkpoint / name).read_bytes()
    card = files["README.md"].decode()
    assert 'from_pretrained("org/small")' in card and "load `pruned`" not in card
    assert card.startswith("---\ntags:\n- tracenas\n---\n\n# pruned\n") and card.endswith("Not recorded.\n")

    assert invoke([*push, "--revision", "v2"]) == 0
    assert repo.refs["v2"] == json.loads(capsys.readouterr().out)["commit"] != repo.refs["main"] == pushed["commit"]
    repo.private = False
    assert invoke(["plan", f"org/small@{pushed['commit']}"]) == 0
    assert "is there, and public" in said(capsys, [*push, "--private"])
    repo.commit({**files, "model-00001-of-00002.safetensors": b""})
    assert "model-00001-of-00002.safetensors on main would stay" in said(capsys, push)
    assert "org/small@v1: expected ORGANISATION/NAME" in said(capsys, ["push", str(checkpoint), "org/small@v1"])


def test_push_refuses_what_is_not_whole_before_the_hub_is_asked(
    hub: FakeHub, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    push = ["push", str(checkpoint), "org/small"]
    card, weights, config = (checkpoint / name for name in ("README.md", "model.safetensors", "config.json"))
    text, tensors = card.read_text(), weights.read_bytes()
    card.write_text(text + "\ncompared with `/home/someone/models/base`\n")
    place = f"{card}, line {len(text.splitlines()) + 2}"
    assert said(capsys, push) == f"{place}: names a path of this machine, /home/someone/models/base; put a name there"
    card.unlink()
    assert "holds no README.md" in said(capsys, push)
    card.write_text(text)
    weights.write_bytes(tensors[:-100])
    assert "model.safetensors" in said(capsys, push)
    weights.write_bytes(tensors)
    config.write_text(config.read_text().replace('"num_hidden_layers": 4', '"num_hidden_layers": 5'))
    assert "are missing" in said(capsys, push)
    assert "no such directory" in said(capsys, ["push", "nowhere", "org/small"])
    assert hub.asked == []


def test_push_says_when_the_hub_does_not_take_it(
    hub: FakeHub, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.read_only = True
    told = said(capsys, ["push", str(checkpoint), "org/small"])
    assert "push to org/small: not allowed; `hf auth login` with a token that may write (You don't" in told
