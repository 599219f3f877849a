"""`tracenas best`: a run's candidates under budgets that it was not made for, by the command line on a tiny model."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_lines import printed, refused, refused_at_last
from tiny import save_tiny, save_words

from tracenas.cli import invoke
from tracenas.families import Options
from tracenas.journal import Journal
from tracenas.models.checkpoints.source import open_source

pytestmark = pytest.mark.integration

SETTINGS = ["--samples", "4", "--seq-len", "32", "--threads", "1", "--channel-quantum", "8", "--kv-groups"]
SMALL = ["--population", "8", "--elites", "2", "--iterations", "2", "--params", "85%"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A tiny model of grouped queries, a text, and the run of a search."""
    home = tmp_path_factory.mktemp("best")
    save_tiny(home / "model", "llama", tokenizer)
    save_words(home / "text.txt", 1500)
    data = ["--data", str(home / "text.txt"), "--out", str(home / "run")]
    assert invoke(["search", str(home / "model"), *data, *SETTINGS, *SMALL]) == 0
    return home


@pytest.fixture
def run(home: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may spoil."""
    return Path(shutil.copytree(home / "run", tmp_path / "run"))


def cached(record: dict[str, Any]) -> int:
    """Bytes per token of a candidate's cache: K and V of every group, 8 wide, in fp32."""
    return sum(2 * 8 * 4 * layer.get("kv_heads", 0) for layer in record["arch"]["layers"])


def random_records(model: Path, count: int) -> list[dict[str, Any]]:
    """Candidates of many sizes with scores that say nothing."""
    space, rng = open_source(str(model)).space(Options(channel_quantum=8, kv_groups=True)), np.random.default_rng(0)
    records = []
    while len(records) < count:
        rows = [[int(rng.choice((0, *s.choices()))) for s in layer.sub_blocks] for layer in space.layers]
        rows = [row if all(row) else [0, 0] for row in rows]
        if sum(map(any, rows)) >= 2:
            arch, score = space.build(rows), -float(rng.uniform(3, 9))
            facts = {"id": arch.id, "generation": 0, "arch": arch.to_json(), "params": space.parameters(arch)}
            records.append({**facts, "score": score, "loss": -score, "seconds": 0.1, "status": "ok"})
    return records


def test_the_best_that_meets_all_budgets_is_the_journals(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = Path(json.loads((run / "summary.json").read_text())["model"])
    records = random_records(model, 300)
    for record in records[:40]:
        record |= {"score": -1.0, "loss": None, "stopped": 2, "terms": [1.0, 1.0]}  # racing's estimates
    (run / "journal.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    base = printed(capsys, ["best", str(run), "--params", "100%"])["costs"]
    for share in (0.7, 0.85):
        limits = {"params": int(share * base["params"]), "kv_cache": int(0.75 * 512)}
        budgets = [f"--budget={name}={limit}" for name, limit in limits.items()]
        found = printed(capsys, ["best", str(run), *budgets])
        fitting = [r for r in records[40:] if r["params"] <= limits["params"] and cached(r) <= limits["kv_cache"]]
        expected = max(fitting, key=lambda r: r["score"])
        assert (found["id"], found["score"], found["loss"]) == (expected["id"], expected["score"], expected["loss"])
        assert found["costs"]["params"] == expected["params"] and found["costs"]["kv_cache"] == cached(expected)
        assert {"params", "active_params", "flops", "kv_cache", "memory"} <= found["costs"].keys()
        assert all(isinstance(cost, int) for cost in found["costs"].values())


def test_held_out_text_decides_as_it_did_in_the_search(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = sorted(Journal(run / "journal.jsonl").read(), key=lambda r: -float(r["score"] or -99))
    second = records[1]
    for trials, expected in (
        ([(records[0], 3.0), (second, 2.0)], second),
        ([(second, 2.0), (records[2], 1.0)], records[0]),  # the best score was not asked about
    ):
        found = {"trials": [{"id": r["id"], "terms": [mean, mean]} for r, mean in trials]}
        (run / "selection.json").write_text(json.dumps(found))
        assert printed(capsys, ["best", str(run), "--params", "85%"])["id"] == expected["id"]
    (run / "selection.json").write_text("[]")
    assert "selection.json" in refused(capsys, ["best", str(run), "--params", "85%"])


def test_a_journal_of_a_thousand_candidates_takes_two_seconds_and_no_torch(run: Path, tmp_path: Path) -> None:
    model = Path(json.loads((run / "summary.json").read_text())["model"])
    records = sorted(random_records(model, 1000), key=lambda r: -r["score"])
    (run / "journal.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    smallest = min(record["params"] for record in records)
    call = f"call('best', {{'run': {str(run)!r}, 'budget': 'params={smallest}', 'out': {str(tmp_path / 'b.json')!r}}})"
    code = f"import sys; from tracenas.commands import call; {call}; sys.exit('torch' in sys.modules)"
    began = time.process_time(), time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    assert json.loads((tmp_path / "b.json").read_text())["costs"]["params"] == smallest
    assert time.perf_counter() - began[1] < 20  # two seconds where nothing else runs


def test_prune_finds_the_run_wherever_the_file_lies(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "elsewhere" / "mine.json"
    monkeypatch.chdir(home)
    found = printed(capsys, ["best", "run", "--params", "85%", "--out", str(out)])
    stored = json.loads(out.read_text())
    assert stored["architecture"] == found["architecture"] and stored["provenance"]["run"] == str(home / "run")
    own = json.loads((home / "run" / "best.json").read_text())["provenance"]
    assert {key: value for key, value in stored["provenance"].items() if key != "run"} == own
    monkeypatch.chdir(tmp_path)
    argv = ["prune", str(home / "model"), "--arch", str(out), "--out", "pruned", "--compensate", "auto"]
    pruned = printed(capsys, argv)
    assert (
        pruned["scored_loss"] == pytest.approx(found["loss"], abs=1e-4) and pruned["params"] == found["costs"]["params"]
    )
    again = printed(capsys, ["best", str(home / "run"), "--params", "85%", "--out", str(out)])  # its own file
    assert again["architecture"] == found["architecture"]


def test_a_run_that_is_gone_is_said(home: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed(capsys, ["best", str(run), "--params", "85%", "--out", str(tmp_path / "best.json")])
    shutil.rmtree(run)
    assert "no such directory" in refused(capsys, ["best", str(run), "--params", "85%"])
    argv = ["prune", str(home / "model"), "--arch", str(tmp_path / "best.json"), "--out", str(tmp_path / "out")]
    assert f"of the run {run}, which is gone" in refused(capsys, argv)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_answered_is_refused(
    home: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["best", str(run)]
    low = min(record["params"] for record in Journal(run / "journal.jsonl").read())
    message = refused(capsys, [*argv, "--params", "30%"])
    assert "no candidate that it has measured meets params" in message and f"the lowest there: {low:,}" in message
    assert "did you mean 'kv_cache'?" in refused(capsys, [*argv, "--budget", "kv_cach=50%"])
    assert "is more than the base model's" in refused(capsys, [*argv, "--budget", "memory=1TB"])
    (tmp_path / "notes.json").write_text("{}")
    assert "exists, and is not of `tracenas best`" in refused(
        capsys, [*argv, "--params", "85%", "--out", str(tmp_path / "notes.json")]
    )
    assert "exists" in refused(capsys, [*argv, "--params", "85%", "--out", str(run / "best.json")])
    assert "holds no run" in refused(capsys, ["best", str(home / "model"), "--params", "85%"])
    (nameless := dict(Journal(run / "journal.jsonl").read()[0])).pop("id")
    (run / "journal.jsonl").write_text(json.dumps(nameless) + "\n")
    assert "journal.jsonl: line 1: no candidate with its score" in refused(capsys, [*argv, "--params", "100%"])
    (run / "journal.jsonl").write_text("")
    assert "no candidate is measured yet" in refused(capsys, [*argv, "--params", "85%"])


def proposals(run: Path) -> list[dict[str, Any]]:
    return Journal(run / "proposals.jsonl").read()


def test_further_candidates_are_proposed_under_the_budgets_and_remembered(
    home: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {name: (run / name).read_bytes() for name in ("journal.jsonl", "best.json", "summary.json", "start.json")}
    argv = ["best", str(run), "--params", "75%", "--budget", "kv_cache=75%", "--out", str(tmp_path / "best.json")]
    found = printed(capsys, [*argv, "--evaluations", "4"])
    first = proposals(run)
    known = {record["id"] for record in Journal(run / "journal.jsonl").read()}
    assert len(first) == 4 and not known & {record["id"] for record in first}
    limit = int(0.75 * json.loads((run / "summary.json").read_text())["base"]["params"])
    assert all(r["params"] <= limit and cached(r) <= 0.75 * 512 and r["status"] == "ok" for r in first)
    assert found["costs"]["params"] <= limit
    assert found["score"] == max(record["score"] for record in first)
    twin = Path(shutil.copytree(home / "run", tmp_path / "twin"))
    printed(capsys, ["best", str(twin), *argv[2:6], "--evaluations", "4"])
    assert [r["id"] for r in proposals(twin)] == [r["id"] for r in first]  # the journal decides
    again = printed(capsys, [*argv, "--evaluations", "2"])
    assert len({record["id"] for record in proposals(run)}) == 6 and again["score"] >= found["score"]
    assert printed(capsys, argv)["id"] == again["id"]  # those that were measured go on counting
    assert {name: (run / name).read_bytes() for name in kept} == kept
    pruning = ["prune", str(home / "model"), "--arch", str(tmp_path / "best.json"), "--compensate", "auto"]
    pruned = printed(capsys, [*pruning, "--out", str(tmp_path / "pruned")])
    assert pruned["scored_loss"] == pytest.approx(again["loss"], abs=1e-4)


def test_a_search_without_a_table_is_gone_on_with_by_a_regression(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", str(home / "text.txt"), "--out", str(tmp_path / "phi"), "--proxy", "phi"]
    printed(capsys, ["search", str(home / "model"), *data, *SETTINGS, *SMALL])
    found = printed(capsys, ["best", str(tmp_path / "phi"), "--params", "75%", "--evaluations", "3"])
    assert len(proposals(tmp_path / "phi")) == 3
    assert found["score"] == max(record["score"] for record in proposals(tmp_path / "phi"))


def test_evaluations_without_a_budget_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "evaluations needs a budget" in refused(capsys, ["best", str(run), "--evaluations", "3"])
    assert "feasible" in refused(capsys, ["best", str(run), "--params", "1%", "--evaluations", "3"])
    (run / "start.json").write_text("[]")
    argv = ["best", str(run), "--params", "75%", "--evaluations", "3"]
    assert "start.json: expected an object of architectures by name" in refused_at_last(capsys, argv)
    assert not (run / "proposals.jsonl").exists()
