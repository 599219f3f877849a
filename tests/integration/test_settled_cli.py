"""A search that finds nothing better ends and says so, resumed or not; with the published start it goes on."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import save_families

from tracenas.cli import invoke
from tracenas.strategies import settled

pytestmark = pytest.mark.integration

SETTINGS = ["--seq-len", "32", "--threads", "1", "--channel-quantum", "8", "--samples", "4", "--params", "60%"]
SIZES = ["--population", "4", "--elites", "2", "--iterations", "9"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A tiny model and a text."""
    return save_families(tmp_path_factory.mktemp("settled"), ("llama",), tokenizer)


@pytest.fixture
def never_better(monkeypatch: pytest.MonkeyPatch) -> None:
    """No gain is beyond the noise."""
    monkeypatch.setattr(settled, "Z", 1e9)


def search(home: Path, out: Path, *options: str) -> list[str]:
    argv = ["search", str(home / "llama"), "--data", str(home / "text.txt"), "--out", str(out)]
    return [*argv, *SETTINGS, *SIZES, *options]


def timeless(run: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k != "seconds"} for r in records]


@pytest.mark.usefixtures("never_better")
def test_it_ends_says_so_and_does_alike_when_resumed(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert invoke(search(home, run, "-v")) == 0
    out, err = capsys.readouterr()
    (line,) = [line for line in err.splitlines() if "ended after" in line]
    assert line.startswith(
        "search: ended after 10 of at most 20 candidates: the last 3 generations found nothing better"
    )
    assert "ended" in out and "the last 3 generations" in out
    best, summary = (json.loads((run / name).read_text()) for name in ("best.json", "summary.json"))
    assert best["settled"] == summary["settled"]
    assert summary["settled"]["generations"] == 3 and summary["settled"]["said"] in line
    assert summary["evaluations"] == 10 and len(summary["generations"]) == 4
    assert yaml.safe_load((run / "config.yaml").read_text())["patience"] == 3
    assert invoke(["report", str(run)]) == 0
    assert "ended by itself: the last 3 generations found nothing better" in (run / "report.html").read_text()
    for lines in (5, 10):
        cut = tmp_path / f"cut{lines}"
        shutil.copytree(run, cut)
        kept = (run / "journal.jsonl").read_text().splitlines(keepends=True)[:lines]
        (cut / "journal.jsonl").write_text("".join(kept))
        for name in ("best.json", "summary.json"):
            (cut / name).unlink()
        assert invoke(search(home, cut, "--resume")) == 0
        assert timeless(cut) == timeless(run)
        again = json.loads((cut / "best.json").read_text())
        assert (again["id"], again["settled"]) == (best["id"], best["settled"])


@pytest.mark.usefixtures("never_better")
@pytest.mark.parametrize("options", [("--patience", "0"), ("--start", "none"), ("--strategy", "evolution")])
def test_as_published_and_without_patience_it_goes_on(home: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    assert invoke(search(home, tmp_path / "run", *options)) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert len(summary["generations"]) == 9 and "settled" not in summary
    assert "ended by itself" not in (tmp_path / "run" / "summary.json").read_text()


def test_patience_below_zero_is_refused(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(search(home, tmp_path / "run", "--patience", "-1")) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "patience" in line and not (tmp_path / "run").exists()
