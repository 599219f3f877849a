"""`--exclude` from the command line to the checkpoint, and through a run that goes on."""

import json
from pathlib import Path

import pytest
import yaml

from tracenas.cli import invoke
from tracenas.demo import calibration_path, model_path

pytestmark = pytest.mark.integration

MODEL = str(model_path())
TEXT = ["--data", str(calibration_path()), "--samples", "2", "--seq-len", "32", "--threads", "1"]
SEARCH = ["search", MODEL, *TEXT, "--params", "60%", "--population", "3", "--elites", "1", "--iterations", "2"]
EXCLUDE = ["--exclude", "0.attention,-1.mlp"]


def assert_whole(layers: list[dict[str, int]]) -> None:
    assert (layers[0]["heads"], layers[7]["channels"]) == (10, 448)
    assert any(la.get("channels", 0) < 448 for la in layers)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("excluded") / "run"
    assert invoke([*SEARCH, "--proxy", "loss", "--out", str(out), *EXCLUDE]) == 0
    return out


def refused(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    capsys.readouterr()
    assert invoke(argv) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_a_one_shot_method_keeps_them_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    argv = ["prune", MODEL, *TEXT, "--params", "60%", "--method", "flap", "--compensate", "none", "--out", str(out)]
    assert invoke([*argv, *EXCLUDE]) == 0
    assert_whole(json.loads((out / "architecture.json").read_text())["architecture"]["layers"])
    card = (out / "README.md").read_text()
    assert "--exclude 0.attention,-1.mlp" in card and "| sub-blocks kept at full width | 0.attention,-1.mlp |" in card


def test_a_run_keeps_them_whole_and_prune_rebuilds_its_space(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    for record in records:
        assert_whole(record["arch"]["layers"])
    best = str(run / "best.json")
    argv = ["prune", MODEL, "--arch", best, "--compensate", "auto", "--threads", "1", "--out", str(tmp_path / "out")]
    assert "exclude is not used here" in refused(capsys, [*argv, *EXCLUDE])
    assert invoke(argv) == 0
    assert "| sub-blocks kept at full width | 0.attention,-1.mlp |" in (tmp_path / "out" / "README.md").read_text()
    record = json.loads(Path(best).read_text())
    record["architecture"]["layers"][0]["heads"] = 5
    Path(best).write_text(json.dumps(record))
    assert "layer 0 has 5 heads, this search space keeps 10 (exclude)" in refused(capsys, argv)


def test_runs_go_on_in_their_own_space(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With what it was started with, also where nothing is said; one that knows nothing of it goes on, too."""
    journal = (run / "journal.jsonl").read_text()
    again = [*SEARCH, "--proxy", "loss", "--out", str(run), "--resume"]
    assert "another exclude" in refused(capsys, [*again, "--exclude", "0.mlp"])
    for more in ([], EXCLUDE):
        assert invoke([*again, *more]) == 0
    assert (run / "journal.jsonl").read_text() == journal
    old = tmp_path / "old"
    argv = [*SEARCH, "--proxy", "loss", "--out", str(old)]
    assert invoke(argv) == 0
    stored = yaml.safe_load((old / "config.yaml").read_text())
    del stored["exclude"]
    (old / "config.yaml").write_text(yaml.safe_dump(stored))
    before = (old / "journal.jsonl").read_text()
    assert invoke([*argv, "--resume"]) == 0
    assert (old / "journal.jsonl").read_text() == before
    assert "another exclude" in refused(capsys, [*argv, "--resume", *EXCLUDE])
