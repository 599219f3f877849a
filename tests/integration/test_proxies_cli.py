"""A search, a score and a plan by any proxy, and by combinations of them, through the command line."""

import json
from pathlib import Path
from typing import Any

import pytest

from tracenas.cli import invoke
from tracenas.demo import calibration_path, model_path
from tracenas.models.surgery.recomputed import recomputed_blocks

pytestmark = pytest.mark.integration

MODEL, DATA = str(model_path()), str(calibration_path())
SMALL = ["--data", DATA, "--samples", "2", "--seq-len", "32", "--threads", "1"]
RANK = ["--rank", "8"]
SEARCH = ["search", MODEL, *SMALL, "--params", "60%", "--population", "3", "--elites", "1", "--iterations", "2"]
BOTH = "loss_compensated=0.7,phi=0.3"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def undisturbed(path: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k != "seconds"} for record in lines(path)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("combined") / "run"
    assert invoke([*SEARCH, *RANK, "--out", str(out), "--proxy", BOTH]) == 0
    return out


@pytest.mark.parametrize(
    "proxy", ["naswot", *(pytest.param(p, marks=pytest.mark.slow) for p in ("zico", "kl_compensated"))]
)
def test_any_proxy_drives_a_search(proxy: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And what it finds is scored the same by `score`."""
    out = tmp_path / "run"
    assert invoke([*SEARCH, "--out", str(out), "--proxy", proxy]) == 0
    best = json.loads((out / "best.json").read_text())
    capsys.readouterr()
    assert invoke(["score", MODEL, *SMALL, "--arch", str(out / "best.json"), "--proxy", proxy, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[proxy] == pytest.approx(best["score"], rel=1e-6)
    assert best["provenance"]["realisation"] == ("ridge" if "compensated" in proxy else "plain")


def test_a_search_whose_activations_do_not_fit_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []

    def counted(*given: Any) -> Any:
        passes.append(given)
        return recomputed_blocks(*given)

    monkeypatch.setattr("tracenas.scoring.measuring.recomputed_blocks", counted)
    kept, again = tmp_path / "kept", tmp_path / "again"
    assert invoke([*SEARCH, *RANK, "--out", str(kept), "--proxy", "phi"]) == 0
    assert not passes
    monkeypatch.setattr("tracenas.pipeline.scoring.free_memory", lambda device: 1 << 10)
    assert invoke([*SEARCH, *RANK, "--out", str(again), "--proxy", "phi"]) == 0
    found = undisturbed(again / "journal.jsonl")
    assert len(passes) >= len(found) > 1 and found == undisturbed(kept / "journal.jsonl")


def test_a_search_by_predicted_rises_runs_no_candidate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    text = ["--data", DATA, "--samples", "2", "--seq-len", "128", "--threads", "1", "--compensate-samples", "10"]
    sizes = ["--params", "60%", "--population", "3", "--elites", "1", "--iterations", "2"]
    assert invoke(["search", MODEL, *text, *sizes, "--out", str(out), "--proxy", "fisher"]) == 0
    assert "– (base" in capsys.readouterr().out
    best, summary = (json.loads((out / name).read_text()) for name in ("best.json", "summary.json"))
    assert best["loss"] is None and summary["measured_tokens"] == 0 and best["score"] < 0
    assert invoke(["score", MODEL, *text, "--arch", str(out / "best.json"), "--proxy", "fisher", "--json"]) == 0
    scored = json.loads(capsys.readouterr().out)
    assert (scored["fisher"], scored["loss"]) == (pytest.approx(best["score"], rel=1e-9), None)


def test_a_combination_is_relative_to_a_stored_pool(run: Path) -> None:
    pool = lines(run / "reference.jsonl")
    assert len(pool) == 33
    assert all(set(r["values"]) == {"loss_compensated", "phi"} for r in pool)
    best = json.loads((run / "best.json").read_text())
    assert best["provenance"]["realisation"] == "ridge"
    for record in lines(run / "journal.jsonl"):
        assert record["loss"] == pytest.approx(-record["proxies"]["loss_compensated"])
        assert -0.5 < record["score"] < 1.5


def test_a_resumed_combination_equals_the_undisturbed_one(run: Path, tmp_path: Path) -> None:
    """Cut off in the middle of the pool, and once more in the middle of the search."""
    out = tmp_path / "run"
    assert invoke([*SEARCH, *RANK, "--out", str(out), "--proxy", BOTH]) == 0
    assert undisturbed(out / "journal.jsonl") == undisturbed(run / "journal.jsonl")
    for name, keep in (("reference.jsonl", 7), ("journal.jsonl", 2)):
        kept = (out / name).read_text().splitlines(keepends=True)[:keep]
        (out / name).write_text("".join(kept) + '{"id": "cut o')
    assert invoke([*SEARCH, *RANK, "--out", str(out), "--proxy", BOTH, "--resume"]) == 0
    assert lines(out / "reference.jsonl") == lines(run / "reference.jsonl")
    assert undisturbed(out / "journal.jsonl") == undisturbed(run / "journal.jsonl")


def test_a_pool_of_another_run_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert invoke([*SEARCH, *RANK, "--out", str(out), "--proxy", BOTH]) == 0
    pool = lines(out / "reference.jsonl")
    (out / "reference.jsonl").write_text("".join(json.dumps(r) + "\n" for r in reversed(pool)))
    journal = (out / "journal.jsonl").read_text().splitlines(keepends=True)
    (out / "journal.jsonl").write_text("".join(journal[:-1]))  # a candidate is left to be scored
    assert invoke([*SEARCH, *RANK, "--out", str(out), "--proxy", BOTH, "--resume"]) == 2
    assert "line 1: not of this run's pool" in capsys.readouterr().err


def test_score_by_a_combination(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = run / "best.json"
    assert invoke(["score", MODEL, *SMALL, *RANK, "--arch", str(best), "--proxy", BOTH, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[BOTH] == pytest.approx(json.loads(best.read_text())["score"], rel=1e-6)
    alone = tmp_path / "arch.json"
    alone.write_text(best.read_text())
    assert invoke(["score", MODEL, *SMALL, *RANK, "--arch", str(alone), "--proxy", BOTH]) == 2
    assert "there is no" in capsys.readouterr().err
    assert invoke(["score", MODEL, *SMALL, *RANK, "--arch", str(best), "--proxy", "kl=1,phi=1"]) == 2
    assert "no value of 'kl'" in capsys.readouterr().err


def test_plan_counts_what_proxies_cost(capsys: pytest.CaptureFixture[str]) -> None:
    memory = {}
    for proxy in ("loss", "loss_compensated", BOTH):
        assert invoke(["plan", MODEL, "--params", "60%", "--proxy", proxy, "--no-timing", "--json"]) == 0
        memory[proxy] = json.loads(capsys.readouterr().out)["memory_bytes"]
    assert memory["loss"]["compensation"] == memory["loss"]["traces"] == memory["loss_compensated"]["traces"] == 0
    assert memory[BOTH]["compensation"] == memory["loss_compensated"]["compensation"] > 0
    assert memory[BOTH]["traces"] > 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--proxy", "los"], "did you mean 'loss'"),
        (["--proxy", "loss=1,phi=much"], "weight 'much' of 'phi'"),
    ],
)
def test_bad_proxies_are_refused(
    argv: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke([*SEARCH, "--out", str(tmp_path / "run"), *argv]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
