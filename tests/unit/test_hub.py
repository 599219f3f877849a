"""Models and data on a hub on loopback: revisions, and what is said when the hub gives nothing."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_hub import FakeHub, Repo, fake_hub, use_hub

from tracenas.cli import invoke
from tracenas.data import hub as hub_data
from tracenas.demo import model_path
from tracenas.errors import UserError
from tracenas.hub.commits import HubName, commits, hub_name, pinned, pinning, remember
from tracenas.hub.failures import refusal
from tracenas.models.checkpoints.fetching import _fetch, fetch
from tracenas.models.checkpoints.published import published
from tracenas.models.checkpoints.source import open_source
from tracenas.pipeline.resume import recorded_commits
from tracenas.pipeline.run_directory import in_use
from tracenas.rundir import provenance


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub() as server:
        use_hub(server.url, cache, monkeypatch)
        yield server


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client does not wait before it asks again."""
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)


def refused(name: str) -> str:
    with pytest.raises(UserError) as error:
        open_source(name)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("org/name", HubName("org/name")),
        ("org/na-me.1_2", HubName("org/na-me.1_2")),
        ("org/name@v1.0", HubName("org/name", "v1.0")),
        ("org/name@refs/pr/1", HubName("org/name", "refs/pr/1")),
        *(
            (name, None)
            for name in ("name", "org/name@", "a/b/c", "./name", "../name", "~/name", "/org/name", "o/n@a b")
        ),
    ],
)
def test_names(name: str, parts: HubName | None) -> None:
    assert hub_name(name) == parts


def test_a_revision_is_opened_at_its_commit_and_fetched_whole(hub: FakeHub) -> None:
    main, dev = hub.add("org/tiny", model_path()), hub.add("org/tiny", model_path(), "dev")
    source = open_source("org/tiny@dev")
    assert source.commit == dev != main
    assert source.address == f"org/tiny@{dev}"
    assert not (source.path / "model.safetensors").exists()
    fetch(source)
    names = {path.name for path in model_path().iterdir()} - {"training_log.jsonl"}
    assert {path.name for path in source.path.iterdir()} == names
    for path in (model_path() / name for name in names):
        assert (source.path / path.name).read_bytes() == path.read_bytes()
    assert open_source(f"org/tiny@{main}").commit == open_source("org/tiny").commit == main


def test_shards_are_fetched_by_their_index_and_nothing_else(hub: FakeHub) -> None:
    config = (model_path() / "config.json").read_bytes()
    index = b'{"metadata": {}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}'
    files = {"config.json": config, "model.safetensors.index.json": index, "consolidated.safetensors": b"c"}
    hub.models["org/shards"] = repo = Repo()
    repo.commit({**files, "model-1.safetensors": b"1", "model-2.safetensors": b"2", "pytorch_model.bin": b"p"})
    source = open_source("org/shards")
    fetch(source)
    there = {path.name for path in source.path.iterdir()}
    assert there == {"config.json", "model.safetensors.index.json", "model-1.safetensors", "model-2.safetensors"}


def test_a_name_stands_for_one_commit_while_a_command_runs(hub: FakeHub) -> None:
    first = hub.add("org/tiny", model_path())
    with pinning({}):
        assert open_source("org/tiny").commit == first
        hub.add("org/tiny", model_path())
        assert open_source("org/tiny").commit == first
        assert commits() == {"org/tiny": first}
        assert pinned("org/tiny") == published("org/tiny") == f"org/tiny@{first}"
        assert provenance()["hub"] == {"org/tiny": first}
        open_source(f"org/tiny@{first}")
        assert commits() == {"org/tiny": first}
    assert open_source("org/tiny").commit != first
    assert commits() == {} and "hub" not in provenance()
    with pinning({"org/tiny": first}):
        assert open_source("org/tiny").commit == first
    remember("org/tiny", first)
    assert commits() == {}


def test_a_directory_with_an_at_is_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(model_path(), tmp_path / "org" / "name@v1")
    monkeypatch.chdir(tmp_path)
    source = open_source("org/name@v1")
    assert source.path == Path("org/name@v1") and source.commit == "" and source.address == "org/name@v1"
    assert published("org/name@v1") == "name@v1"
    (tmp_path / "org" / "name").mkdir()
    assert (
        refused("org/name@v2")
        == "model org/name@v2: org/name is a directory here; only models on the hub have revisions"
    )


def test_an_adapter_on_the_hub_is_refused(hub: FakeHub) -> None:
    repo = hub.models["org/adapter"] = Repo()
    repo.commit({"config.json": b"{}", "adapter_config.json": b"{}"})
    assert "model org/adapter: a PEFT adapter" in refused("org/adapter")


def test_refusals_say_what_helps(hub: FakeHub) -> None:
    hub.add("org/tiny", model_path())
    hub.add("org/gated", model_path(), gated=True)
    hub.add("org/private", model_path(), private=True)
    hub.models["org/empty"] = Repo()
    hub.models["org/empty"].commit({"README.md": b""})
    assert refused("org/gated") == (
        f"model org/gated: gated: accept the licence at {hub.url}/org/gated, then `hf auth login` "
        "(Access to model org/gated is restricted and you are not in the authorized list.)"
    )
    assert refused("org/private") == (
        "model org/private: not on the hub, or private (then `hf auth login`) (Repository not found)"
    )
    assert "; did you mean 'org/tiny'? (Repository not found)" in refused("org/tony")
    told = "no revision 'mian': did you mean 'main'? accepted: main, or a commit (Invalid rev id: mian)"
    assert refused("org/tiny@mian") == f"model org/tiny@mian: {told}"
    assert "model org/empty: the hub has no file config.json in it" in refused("org/empty")


def test_a_token_that_is_no_longer_good(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/tiny", model_path())
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    told = "the hub does not know your token (any more): `hf auth login` (Invalid credentials in Authorization header)"
    assert refused("org/tiny") == f"model org/tiny: {told}"


@pytest.mark.usefixtures("unhurried")
def test_a_hub_in_trouble_is_quoted(hub: FakeHub) -> None:
    hub.add("org/broken", model_path(), broken=True)
    assert "the hub did not give it (Internal Error" in refused("org/broken")


def test_weights_that_are_no_safetensors_are_refused(hub: FakeHub) -> None:
    repo = hub.models["org/pickled"] = Repo()
    repo.commit({"config.json": (model_path() / "config.json").read_bytes(), "pytorch_model.bin": b"p"})
    with pytest.raises(UserError, match=r"only safetensors is accepted .*org/pickled@refs/pr/NUMBER"):
        fetch(open_source("org/pickled"))


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("offline", [True, False])
def test_without_a_network_the_cache_is_used(
    offline: bool, hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.add("org/tiny", model_path(), "dev")
    hub.add("org/half", model_path())
    fetch(open_source("org/tiny@dev"))
    half = open_source("org/half")
    use_hub("http://127.0.0.1:9", cache, monkeypatch, offline=offline)
    _fetch.cache_clear()
    trouble = "HF_HUB_OFFLINE is set" if offline else "http://127.0.0.1:9 cannot be reached"
    source = open_source("org/tiny@dev")
    fetch(source)
    assert source.commit == open_source(f"org/tiny@{commit}").commit == commit
    absent = refused("org/absent@v1")
    assert f"{trouble}, and nothing of it is in the cache ({cache})" in absent
    assert "`hf download org/absent --revision v1`" in absent
    told = f"{trouble}, and the cache in {cache} has only a part of it, or another revision: dev ({commit[:7]})"
    assert told in refused("org/tiny")
    with pytest.raises(UserError, match=re.escape(trouble)):
        fetch(half)


def test_a_full_disk_is_told_before_and_during_a_download(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/tiny", model_path())
    source = open_source("org/tiny")
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 20))
    with pytest.raises(UserError, match=r"no room in .*: 5.\d+ MiB are to be downloaded, 1 MiB are free; .* HF_HOME"):
        fetch(source)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for error in (full, RuntimeError("Data processing error: IO Error: No space left on device (os error 28)")):
        assert "no room in" in str(refusal("model org/tiny", "org/tiny", error))


def test_a_disk_that_fills_up_during_a_download_is_told_and_the_download_goes_on(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import file_download

    hub.add("org/tiny", model_path())
    original = file_download.http_get

    class Full:
        """A file on a disk with room for ten thousand bytes."""

        def __init__(self, file: Any) -> None:
            self.file, self.room = file, 10_000

        def write(self, data: bytes) -> int:
            self.room -= len(data)
            if self.room < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return int(self.file.write(data))

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    with monkeypatch.context() as patched:
        patched.setattr(file_download, "http_get", lambda url, file, **options: original(url, Full(file), **options))
        assert invoke(["export", "org/tiny", "--out", "tiny.gguf"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tracenas: ")]
    assert re.fullmatch(r"tracenas: model org/tiny: no room in .*: .* are free; make room, or set HF_HOME .*", line)
    assert not Path("tiny.gguf").exists()
    source = open_source("org/tiny")
    assert not (source.path / "model.safetensors").exists()
    fetch(source)
    assert (source.path / "model.safetensors").read_bytes() == (model_path() / "model.safetensors").read_bytes()


def texts(*words: str) -> dict[str, bytes]:
    """Files of a data set."""
    return {"README.md": b"", "data.jsonl": "".join(f'{{"text": "{word}"}}\n' for word in words).encode()}


def test_a_data_set_stands_for_one_commit_while_a_command_runs(hub: FakeHub, tmp_path: Path) -> None:
    repo = hub.datasets["org/text"] = Repo()
    first, data = repo.commit(texts("first")), hub_data.parse("org/text")
    with pinning({}):
        assert list(hub_data.rows(data)) == ["first"]
        second = repo.commit(texts("second"))
        assert list(hub_data.rows(data)) == ["first"]
        assert commits() == provenance()["hub"] == {"datasets/org/text": first}
    assert list(hub_data.rows(data)) == ["second"]
    with pinning({"datasets/org/text": first}):
        hub.asked.clear()
        assert list(hub_data.rows(data)) == ["first"]
        assert not any(second in asked for asked in hub.asked)
    with pinning({}), in_use(tmp_path):
        list(hub_data.rows(data))
        assert not (tmp_path / "hub.json").exists()  # there is no run yet
    with pinning({}), in_use(tmp_path):
        (tmp_path / "config.yaml").touch()
        list(hub_data.rows(data))
        assert recorded_commits(tmp_path) == {"datasets/org/text": second}  # at once, for whoever is killed later


def test_data_sets_say_the_same(hub: FakeHub) -> None:
    for name, facts in {"org/gated": {"gated": True}, "org/text": {}}.items():
        hub.datasets[name] = Repo(**facts)
        hub.datasets[name].commit({"README.md": b"", "data.jsonl": b'{"text": "words"}\n'})
    for name, told in {
        "org/gated": f"gated: accept the licence at {hub.url}/datasets/org/gated, then `hf auth login`",
        "org/txet": "not on the hub, or private (then `hf auth login`); did you mean 'org/text'?",
    }.items():
        with pytest.raises(UserError, match=re.escape(told)):
            list(hub_data.rows(hub_data.parse(name)))


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("offline", [True, False])
def test_data_sets_without_a_network(offline: bool, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_hub("http://127.0.0.1:9", cache, monkeypatch, offline=offline)
    trouble = "HF_HUB_OFFLINE is set" if offline else "http://127.0.0.1:9 cannot be reached"
    told = f"data set 'org/text@train' .*: {trouble}, and nothing .*--repo-type dataset"
    with pytest.raises(UserError, match=told):
        list(hub_data.rows(hub_data.parse("org/text")))
