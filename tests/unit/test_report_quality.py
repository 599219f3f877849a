"""The chart of size against quality: where marks stand, what is not within it, and what a tooltip says."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from report_run import BASE, make_run
from test_report import Page, rewrite
from test_report_verdict import make_searched

from tracenas.reporting import write_report

MARK = re.compile(
    r'cx="([\d.]+)" cy="([\d.]+)" r="[\d.]+" class="(?P<style>[a-z ]+)">'
    r"<title>(?P<name>[^:<]+(?:: [A-Zt][^:<]+)?): loss (?P<loss>[\d.]+), (?P<params>[\d,]+) parameters"
)


def marks(run: Path) -> tuple[str, list[dict[str, str]]]:
    page = write_report(run).read_text(encoding="utf-8")
    start = page.index('aria-label="Parameters and loss of')
    chart = page[start : page.index("</svg>", start)]
    return Page(page).text, [m.groupdict() | {"x": m[1], "y": m[2]} for m in MARK.finditer(chart)]


def test_every_measured_candidate_stands_at_its_size_and_loss(tmp_path: Path) -> None:
    run = make_searched(tmp_path / "run", {"fisher": 2.7, "mlp": 9.0, "uniform": 2.9}, 2.6)
    rows = [{"name": "base", "loss": 2.3, "params": BASE}, {"name": "random 1", "loss": 9.5, "params": 80_500_000}]
    rewrite(run / "summary.json", comparison=[*rows, {"name": "found", "loss": 2.6, "params": 80_600_000}])
    text, found = marks(run)
    records = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    dots = [mark for mark in found if mark["style"].startswith("dot")]
    assert {mark["name"] for mark in dots} == {record["id"] for record in records}
    named = {re.sub(r" \(.*", "", mark["name"]): mark for mark in found if mark["style"].startswith("mark")}
    assert set(named) == {"random 1", "found", "uniform", "start: the closed form", "start: MLPs alone"}
    params = [int(mark["params"].replace(",", "")) for mark in found]
    slope, offset = np.polyfit(params, [float(mark["x"]) for mark in found], 1)
    assert slope > 0
    np.testing.assert_allclose([float(m["x"]) for m in found], [slope * p + offset for p in params], atol=0.02)
    within = [mark for mark in found if not mark["style"].endswith("low")]
    losses, heights = [float(mark["loss"]) for mark in within], [float(mark["y"]) for mark in within]
    slope, offset = np.polyfit(losses, heights, 1)
    assert slope < 0
    np.testing.assert_allclose(heights, [slope * loss + offset for loss in losses], atol=0.5)
    assert all(named[name]["style"].endswith("low") for name in ("random 1", "start: MLPs alone"))
    above = [mark for mark in dots if mark["style"].endswith("low")]
    assert {float(mark["y"]) for mark in above} == {14.0} and min(float(mark["loss"]) for mark in above) > max(losses)
    assert len(above) == 1 and "1 candidate above the chart" in text and "base 2.300" in text


def test_candidates_without_a_loss_are_counted(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", layers=3, iterations=2, failing=0, comparison=None)
    records = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    for record in records[3:10]:
        record.update(loss=None)
    (run / "journal.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    text, found = marks(run)
    assert "7 candidates without a full loss (stopped early or failed) not shown" in text
    assert sum(mark["style"].startswith("dot") for mark in found) == len(records) - 7


def test_without_losses_there_is_no_chart(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", layers=3, iterations=1, failing=2.0, comparison=None)
    with pytest.raises(ValueError, match="substring not found"):
        marks(run)
    assert "Size against quality" not in (run / "report.html").read_text(encoding="utf-8")
