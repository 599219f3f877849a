"""`tracenas resume` from another working directory: the result is that of an undisturbed run, whatever the command."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from recovery_toys import write_text
from safetensors.torch import load_file
from tiny import save_tiny

from tracenas.cli import invoke
from tracenas.journal import Journal
from tracenas.models.checkpoints import loading

pytestmark = pytest.mark.integration

MODEL = ["model", "--data", "text.txt", "--threads", "1"]
SMALL = ["--samples", "4", "--seq-len", "32", "--population", "4", "--elites", "2", "--iterations", "3"]
SEARCH = [*MODEL, *SMALL, "--params", "60%", "--start", "none"]
HELD_OUT = ["--eval-text", "held-out.txt", "--eval-windows", "4"]
TRAIN = ["--method", "distill", "--teacher", "model", "--tokens", "128", "--global-batch", "2", "--log-every", "1"]
POOL = ["--params", "80%", "--architectures", "4", "--samples", "4", "--seq-len", "32", "--resamples", "50"]
SECTION = [f"recover.{key}" for key in ("method=distill", "max_steps=3", "global_batch=2", "seq_len=16", "log_every=1")]
KINDS = {
    "search": ["search", *SEARCH],
    "run": ["run", *SEARCH, *HELD_OUT, "--random-architectures", "1", "--compensate", "none", *SECTION],
    "recover": ["recover", *MODEL, *HELD_OUT, *TRAIN, "--save-every", "1", "--seq-len", "16"],
    "metric": ["metric", "search", *MODEL, *HELD_OUT, *SMALL],
    "sparsify": ["sparsify", *MODEL, *SMALL, "--sparsity", "0.5", "--ratios", "search"],
    "study": ["study", *MODEL, *HELD_OUT, *POOL, "--proxies", "loss", "--steps", "1", "--recover-batch", "2"],
    "ablation": ["study", "ablation", *MODEL, *POOL, "--proxy", "loss"],
}
STOPS = {"search": 7, "run": 14, "recover": 4, "metric": 7, "sparsify": 7, "study": 2, "ablation": 2}
"""Lines of journals after which a run is interrupted: a run's search is over by then, and it recovers."""
REMADE = ("best.json", "summary.json", "report.html", "study.md", "ablation.md")
MEASURED = ("costs.json", "resources.json")
TIMES = re.compile(r"seconds|setup|tokens_per_second|peak_memory|mfu|eta")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    home = tmp_path_factory.mktemp("resume")
    save_tiny(home / "model", "llama", tokenizer)
    write_text(home / "text.txt", 60)
    write_text(home / "held-out.txt", 10, seed=1)
    return home


def interrupted(monkeypatch: pytest.MonkeyPatch, argv: list[str], lines: int) -> int:
    """The exit status of a command that is interrupted when it has written so many lines of journals."""
    original, left = Journal.append, [lines]

    def append(self: Journal, record: Any) -> None:
        original(self, record)
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "append", append)
        return invoke(argv)


def untimed(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: untimed(v) for k, v in value.items() if not TIMES.search(k)}
    return [untimed(v) for v in value] if isinstance(value, list) else value


def results(out: Path) -> dict[str, Any]:
    """Everything that a run leaves, without times and without its own name."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in out.parent.rglob("*") if p.is_file() and p.name not in MEASURED):
        name = str(path.relative_to(out.parent))
        if path.suffix in (".json", ".yaml", ".jsonl") and "tokenizer" not in path.name:
            text = path.read_text().replace(str(out.parent), "HOME")
            if path.suffix == ".yaml":
                found[name] = text
            else:
                found[name] = [untimed(json.loads(part)) for part in (text.splitlines() if name[-1] == "l" else [text])]
        elif path.suffix == ".safetensors":
            found[name] = {key: tensor.tolist() for key, tensor in load_file(path).items()}
        else:
            found[name] = path.read_text().replace(str(out.parent), "HOME") if path.name == "README.md" else None
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_from_another_directory(
    kind: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("calm", "stopped", "elsewhere"):
        (tmp_path / name).mkdir()
    for name in ("calm", "stopped"):
        monkeypatch.chdir(tmp_path / name)
        for shared in home.iterdir():
            Path(shared.name).symlink_to(shared)
        argv = [*KINDS[kind], "--out", "out"]
        if name == "calm":
            assert invoke(argv) == 0
            continue
        capsys.readouterr()
        assert interrupted(monkeypatch, argv, STOPS[kind]) == 130
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert said.startswith("tracenas: interrupted; go on with: tracenas resume ")
        again = shlex.split(said.split("go on with: tracenas ")[1])
    again[1] = f"../stopped/{again[1]}"
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert invoke([*again, "--json"]) == 0
    told = capsys.readouterr()
    assert "stopped/out" in told.out and "is finished" not in told.err
    calm, stopped = (results(tmp_path / name / "out") for name in ("calm", "stopped"))
    assert calm.keys() == stopped.keys()
    assert [name for name in calm if calm[name] != stopped[name]] == []
    complete(again, monkeypatch, capsys)


def complete(again: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a finished run, what is removed comes back as it was, without the model."""

    def loaded(*_: Any, **__: Any) -> None:
        raise AssertionError("the model is loaded")

    run = Path(again[1])
    monkeypatch.setenv("TRACENAS_LOG", "info")
    monkeypatch.setattr(loading, "pick_device", loaded)  # where loading begins
    assert invoke(again) == 0
    assert f"{run} is finished" in capsys.readouterr().err
    before = {name: (run / name).read_bytes() for name in REMADE if (run / name).is_file()}
    for name in before:
        (run / name).unlink()
    assert invoke(again) == 0
    told = f"{run} is finished{'; made again: ' if before else ''}{', '.join(sorted(before))}"
    assert told in capsys.readouterr().err.splitlines()
    assert {name: (run / name).read_bytes() for name in before} == before
