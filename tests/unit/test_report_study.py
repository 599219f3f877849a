"""The page of a finished study, from a synthetic one."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_report import Page
from test_report_running import STUDY, study_record

from tracenas.reporting.pages.study import write_study_report
from tracenas.studies import StudyTarget, analyse

TARGETS = [
    StudyTarget("plain_0", "loss as cut", group="plain", steps=0),
    StudyTarget("plain_8", "loss after 8 steps", group="plain", steps=8),
    StudyTarget("task_piqa", "accuracy <piqa>", loss=False),
]


def record(place: int) -> dict[str, Any]:
    """The second architecture failed in a task; losses change their order with the steps."""
    record = study_record(place)
    later = {"value": 3.0 + (place * 3) % 7, "by_seed": [3.0, 3.5], "seconds": 1}
    failed = {"value": None, "reason": "UserError: <no>", "by_seed": [], "seconds": 1}
    targets = {**record["targets"], "plain_8": later, **({"task_piqa": failed} if place == 1 else {})}
    return {**record, "scores": {**record["scores"], "same": 1.0}, "targets": targets}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    records = [record(place) for place in range(12)]
    proxies = {"phi": 0.5, "loss": 0.1, "kl": 0.2, "same": 0.1}
    results = {
        "title": "Study <1>",
        "protocol": "12 architectures of one size.",
        "model": "org/m",
        "architectures": len(records),
        "base_params": 2_000_000,
        "params": "60%",
        "within_budget": True,
        "main_target": "plain_8",
        "settings": {"seed": 3, "starts": ["plain"]},
        "provenance": {"git": "abc"},
        "seconds": {"scores": 60.0, "targets": 30.0},
        "combined": {"phi+loss": {r["id"]: 0.0 for r in records}},
        **analyse(records, proxies, TARGETS, resamples=50),
    }
    (tmp_path / "study.json").write_text(json.dumps(results))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(STUDY))
    (tmp_path / "journal.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return tmp_path


def test_every_section_of_a_study_is_on_the_page(study: Path) -> None:
    page = Page(write_study_report(study).read_text())
    anchors = ["correlation", "regret", "scatter", "targets", "architectures", "settings"]
    assert page.references == [f"#{anchor}" for anchor in anchors]
    for expected in (
        "Study <1>: proxy study",
        "12 architectures",
        "Within 60%",
        "4 proxies",
        "2.00M parameters in the base",
        "Best order: ",
        "scores 1 min 00 s, targets 30 s",
        "same with loss after 8 steps: undefined",
        "falls from the upper left to the lower right",
        "loss as cut → loss after 8 steps",
        "accuracy <piqa>",
        "Failed scores",
        "RuntimeError: no",
        "Failed measurements",
        "UserError: <no>",
        "2/64  ×",
    ):
        assert expected in page.text, expected
    assert page.tags.count("svg") >= 5 and page.tags.count("script") == 1
    order = [text for text in page.texts if text in ("uniform", "random")]
    assert order.count("uniform") >= 2 and "60.0 %" in page.text


def test_a_study_of_one_target_across_sizes_has_neither_regret_nor_agreement(study: Path) -> None:
    results = json.loads((study / "study.json").read_text())
    records = [record(place) for place in range(12)]
    results |= analyse(records, {"phi": 0.5}, TARGETS[1:2], resamples=50, within_budget=False)
    (study / "study.json").write_text(json.dumps({**results, "within_budget": False}))
    page = Page(write_study_report(study).read_text())
    assert "#regret" not in page.references and "Across sizes" in page.text
    for absent in ("With every target", "Agreement of the targets", "As published"):
        assert absent not in page.text
