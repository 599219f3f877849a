"""Who won: what was found against uniform, random and the one-shot architectures that a search scored first."""

import json
from pathlib import Path

import pytest
from report_run import keep_starts, make_run
from test_report import report, rewrite

from tracenas.reporting import RunData
from tracenas.reporting.verdict import run_verdict


@pytest.mark.parametrize(
    ("found", "uniform", "chance", "outcome", "winner"),
    [
        (10.0, 12.0, 11.0, "won", "found"),
        (10.0, 9.0, 11.0, "lost", "uniform"),
        (10.0, 12.0, 9.5, "lost", "random 1"),
        (10.0, 10.0, 11.0, "tied", "found"),
        (10.0, None, None, "unknown", None),
        (None, 9.0, 9.0, "unknown", None),
    ],
)
def test_verdicts(
    tmp_path: Path,
    found: float | None,
    uniform: float | None,
    chance: float | None,
    outcome: str,
    winner: str | None,
) -> None:
    rows = [
        {"name": "uniform", "perplexity": uniform, "params": 980},
        {"name": "random 1", "perplexity": chance, "params": 1000},
        {"name": "found", "perplexity": found, "params": 1000},
    ]
    run = RunData.read(make_run(tmp_path / "run", layers=3, iterations=1, comparison=rows))
    verdict = run_verdict(run)
    assert (verdict.outcome, verdict.winner and verdict.winner.name) == (outcome, winner)
    unequal = any("−2.0" in remark and "uniform" in remark for remark in verdict.remarks)
    assert unequal == (outcome != "unknown")


def make_searched(path: Path, losses: dict[str, float | None], found: float) -> Path:
    """A run whose first candidates are starts with these losses; the best candidate has the loss `found`."""
    run = make_run(path, layers=3, iterations=2, failing=0, comparison=None)
    lines = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    for record, loss in zip(lines, losses.values(), strict=False):
        record.update(loss=loss)
    max(lines, key=lambda r: r["score"]).update(loss=found)
    (run / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    keep_starts(run, **{name: place for place, name in enumerate(losses)})
    return run


@pytest.mark.parametrize(
    ("losses", "found", "outcome", "words"),
    [
        (
            {"fisher": 2.7, "mlp": 3.0, "uniform": 2.9},
            2.6,
            "won",
            "2.700 for the closed form, the best one-shot start (−0.10 nats) and 2.900 for uniform (−0.30 nats)",
        ),
        (
            {"mlp": 2.5, "uniform": None},
            2.6,
            "lost",
            "against 2.500 for MLPs alone, the best one-shot start (+0.10 nats).",
        ),
        ({"uniform": 2.6}, 2.6, "tied", "against 2.600 for uniform, the best one-shot start"),
        ({"uniform": None}, 2.6, "unknown", "No perplexity was measured"),
    ],
)
def test_found_against_one_shot_starts(
    tmp_path: Path, losses: dict[str, float | None], found: float, outcome: str, words: str
) -> None:
    run = make_searched(tmp_path / "run", losses, found)
    verdict = run_verdict(RunData.read(run))
    assert verdict.outcome == outcome and words in verdict.sentence
    page = report(run)
    assert verdict.sentence in page.text
    assert ("start: MLPs alone" in page.texts) == ("mlp" in losses)


def test_the_headline_has_uniform_and_the_best_start(tmp_path: Path) -> None:
    """A perplexity where one was measured, the loss on the calibration for what was only scored."""
    run = make_searched(tmp_path / "run", {"fisher": 2.7}, 2.6)
    rows = [{"name": "uniform", "perplexity": 20.0}, {"name": "random 1", "perplexity": 90.0}]
    rewrite(run / "summary.json", comparison=[*rows, {"name": "found", "perplexity": 10.0}])
    verdict = run_verdict(RunData.read(run))
    assert "10.00, against 20.00 for uniform (−50.0" in verdict.sentence and "90" not in verdict.sentence
    assert "2.600, against 2.700 for the closed form" in verdict.sentence


def test_a_search_that_finds_only_its_start_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", layers=3, iterations=1, failing=0, comparison=None)
    data = RunData.read(run)
    assert data.best is not None
    keep_starts(run, fisher=data.candidates.index(data.best))
    assert run_verdict(RunData.read(run)).sentence.startswith("The search found nothing better than the closed form")
