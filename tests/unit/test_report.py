"""The HTML report and the terminal tables, on synthetic run directories."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_run import make_run

from tracenas.errors import UserError
from tracenas.formats import decimal
from tracenas.reporting import RunData, write_report
from tracenas.reporting.charts.dynamics import generations


class Page(HTMLParser):
    """Checks that every element is closed, and collects the text and what would be fetched."""

    VOID = frozenset({"meta", "br", "hr", "link", "img", "input"})

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.references: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for key, value in attrs if key in ("src", "href", "xlink:href")]
        assert not [key for key, _ in attrs if key.startswith("on")], "no inline handlers"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts).replace("\N{NARROW NO-BREAK SPACE}", " ")


def report(run: Path) -> Page:
    page = write_report(run).read_text(encoding="utf-8")
    assert "NaN" not in page and "nan" not in re.findall(r'="(nan|inf|None)', page)
    return Page(page)


def rewrite(path: Path, **changes: Any) -> None:
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | changes))


def test_a_text_on_this_machine_is_called_by_its_name(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", layers=3, iterations=1)
    summary = json.loads((run / "summary.json").read_text())
    rows = [{**row, "text": "/data/texts/held-out.txt"} for row in summary["comparison"]]
    rewrite(run / "summary.json", comparison=rows)
    page = report(run)
    assert "Perplexity on held-out.txt (65,408 tokens)" in page.text and "/data/texts" not in page.text


def test_every_budget_is_shown_with_what_the_best_costs(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", layers=3, iterations=1)
    of_cache = {"limit": 15_436, "cost": 15_360}
    rewrite(run / "summary.json", budget={}, budgets={"kv_cache": of_cache, "memory": {"limit": 10**9, "cost": 5}})
    page = report(run)
    assert "Budget kv_cache: 15,360 of 15,436" in page.text and "Budget memory: 5 of 1,000,000,000" in page.text
    assert "Budget 8" not in page.text  # none of parameters


def test_a_full_run_shows_its_numbers(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", layers=6, iterations=4)
    page = report(run)
    best = json.loads((run / "best.json").read_text())
    for expected in (
        "SmolLM2-135M",
        decimal(best["score"]),
        "134,515,008",
        "80,655,552",
        "60.0 % of base",
        "16.42",
        "84.31",
        "118.4",
        "216.6 ± 69.3",
        "Perplexity on wikitext2 (65,408 tokens)",
        "lowest perplexity of the 7 pruned models",
        "−28.8 %",
        "11 min 52 s",
        "1.22 GiB",
        "17 duplicates redrawn",
        "mutation.sigma",
        "a1b2c3d",
        "Attention width",
        "Population variance",
    ):
        assert expected in page.text, expected
    found = json.loads((run / "best.json").read_text())["architecture"]["layers"]
    for layer in found:
        if "skip" not in layer:
            assert f"{layer['channels']:,}" in page.texts
    assert page.text.count("skipped") >= 2 * sum("skip" in layer for layer in found)


def test_the_page_stands_alone(tmp_path: Path) -> None:
    path = write_report(make_run(tmp_path / "run", layers=4, iterations=2), tmp_path / "elsewhere" / "r.html")
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert path == tmp_path / "elsewhere" / "r.html"
    assert all(reference.startswith("#") for reference in page.references)
    assert not re.search(r"https?://|@import|url\((?!#)", text)
    assert not {"link", "img", "iframe", "object"} & set(page.tags)
    assert text.count("<script>") == 1


def test_names_are_escaped(tmp_path: Path) -> None:
    evil = '<script>alert("1")</script>"\'><b>'
    run = make_run(tmp_path / "run", layers=3, iterations=2, model=evil, checkpoint={evil: evil})
    comparison = json.loads((run / "summary.json").read_text())["comparison"]
    comparison[1]["name"] = evil
    rewrite(run / "summary.json", comparison=comparison)
    lines = (run / "journal.jsonl").read_text().splitlines()
    record = json.loads(lines[0]) | {"score": None, "reason": evil, "id": evil}
    (run / "journal.jsonl").write_text("\n".join([json.dumps(record), *lines[1:]]) + "\n")
    page = report(run)
    assert page.tags.count("script") == 1
    assert evil in page.text


def test_a_rival_that_wins_is_said_to_win(tmp_path: Path) -> None:
    page = report(make_run(tmp_path / "run", layers=4, iterations=2, found_wins=False))
    assert "The uniform architecture beats the found architecture" in page.text
    assert "found is 10.8 % worse" in page.text
    assert "uniform is better" in page.text
    assert "lowest perplexity" not in page.text


def test_a_rival_with_a_higher_score_is_mentioned(tmp_path: Path) -> None:
    rows = [
        {"name": "random 1", "perplexity": 20.0, "score": 2.5},
        {"name": "found", "perplexity": 10.0, "score": 2.0},
    ]
    run = make_run(tmp_path / "run", layers=3, iterations=1, comparison=rows)
    assert "“random 1” has a higher Φ than found (2.500)" in report(run).text
    rows[1]["score"] = 3.0
    rewrite(run / "summary.json", comparison=rows)
    assert "higher Φ" not in report(run).text


def test_the_score_chart_follows_the_elites(tmp_path: Path) -> None:
    """Candidates far below the elites stand at the chart's edge, counted, and squeeze nothing."""
    scores = [[-9.0, -8.0, -3.0, -2.9, -2.8], [-9.0, -2.7, -2.6, -8.5, -2.75]]
    layer = {"heads": 1, "channels": 32}
    lines = [
        json.dumps({"id": f"{g}-{i}", "generation": g, "arch": {"layers": [layer] * 2}, "score": score})
        for g, row in enumerate(scores)
        for i, score in enumerate(row)
    ]
    (tmp_path / "journal.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "summary.json").write_text(json.dumps({"elites": 3, "proxy": "loss"}))
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "4 candidates below the chart (lowest −9.000)" in Page(page).text
    chart = page[page.index('aria-label="score (loss) of 10 candidates') :]
    chart = chart[: chart.index("</svg>")]
    dots = re.findall(r'cy="([\d.]+)" r="2.2" class="(dot(?: low)?)"><title>\d-\d: score \(loss\) −([\d.]+)', chart)
    heights = {float(score): float(y) for y, style, score in dots if style == "dot"}
    assert sorted(heights) == [2.6, 2.7, 2.75, 2.8, 2.9, 3.0]
    assert heights[3.0] - heights[2.6] > 0.7 * (290 - 14 - 48), "the elites' range fills the chart"
    assert {float(y) for y, style, _ in dots if style == "dot low"} == {290.0 - 48}


def test_all_candidates_failed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", layers=4, iterations=2, failing=2.0, comparison=None)
    page = report(run)
    assert "no candidate got a score" in page.text
    assert "50 candidates of 50 got no score" in page.text
    assert "out of memory" in page.text


@pytest.mark.parametrize("missing", [["summary.json"], ["best.json", "config.yaml"], ["journal.jsonl"]])
def test_parts_may_be_missing(tmp_path: Path, missing: list[str]) -> None:
    run = make_run(tmp_path / "run", layers=4, iterations=2)
    best = json.loads((run / "best.json").read_text())["score"]
    for name in missing:
        (run / name).unlink()
    page = report(run)
    assert decimal(best) in page.text
    assert ("not finished" in page.text) == ("summary.json" in missing)


def test_a_last_line_cut_off_is_tolerated(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", layers=3, iterations=2)
    with (run / "journal.jsonl").open("a") as journal:
        journal.write('{"id": "cut')
    assert len(RunData.read(run).candidates) == 50


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("journal.jsonl", 'garbage\n{"generation": 0}\n', "line 1"),
        ("journal.jsonl", '{"id": "a", "arch": {"layers": [{"heads": 1}]}}\n', "generation"),
        ("journal.jsonl", '{"generation": 0, "arch": {"layers": []}}\n', "line 1"),
        ("journal.jsonl", '{"generation": 0, "arch": {"layers": [{"heads": 1}]}, "score": "x"}\n', "score"),
        ("best.json", '{"architecture": ', "best.json"),
        ("best.json", '{"architecture": {"layers": [{"legs": 4}]}, "score": 1}', "legs"),
        ("start.json", '{"mlp": {"layers": [{"legs": 4}]}}', "start.json: mlp"),
        ("summary.json", "[]", "summary.json"),
        ("summary.json", '{"comparison": [{"perplexity": 3}]}', "name"),
        ("summary.json", '{"base": {"units": {"heads": [4]}}}', "3 layers"),
        ("config.yaml", "a: [", "config.yaml"),
    ],
)
def test_corrupt_files_are_named(tmp_path: Path, file: str, content: str, message: str) -> None:
    run = make_run(tmp_path / "run", layers=3, iterations=1)
    (run / file).write_text(content)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        write_report(run)
    assert "\n" not in str(error.value)
    assert not (run / "report.html").exists()


def test_no_run_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such run directory"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(UserError, match="not a run directory"):
        write_report(tmp_path)


def test_encoder_decoder_with_kv_groups(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    arch = {
        "encoder": {"layers": [{"heads": 4, "kv_heads": 2, "channels": 96}, {"skip": True}]},
        "decoder": {"layers": [{"heads": 2, "kv_heads": 1, "cross_heads": 3, "channels": 64}] * 2},
    }
    line = {"id": "a", "generation": 0, "arch": arch, "params": 10, "score": 1.0, "loss": None, "seconds": 1}
    (run / "journal.jsonl").write_text(json.dumps(line) + "\n")
    units = {
        "encoder": {"heads": [4, 4], "kv_heads": [2, 2], "channels": [128, 128]},
        "decoder": {"heads": [4, 4], "kv_heads": [2, 2], "cross_heads": [4, 4], "channels": [128, 128]},
    }
    (run / "summary.json").write_text(json.dumps({"base": {"params": 20, "units": units}}))
    data = RunData.read(run)
    assert data.base_units["cross_heads"] == (0, 0, 4, 4)
    page = report(run)
    for expected in ("Encoder", "Decoder", "Cross-attention heads", "E0", "D1"):
        assert expected in page.texts
    rewrite(run / "summary.json", base={"units": {"cross_heads": [4, 4]}})
    assert RunData.read(run).base_units["cross_heads"] == (0, 0, 4, 4)
    report(run)


def test_generations_follow_the_elites(tmp_path: Path) -> None:
    def line(generation: int, score: float | None, heads: int, channels: int = 64) -> str:
        layer = {"heads": heads, "channels": channels} if heads else {"skip": True}
        arch = {"layers": [layer, {"heads": 4, "channels": 64}]}
        return json.dumps({"generation": generation, "arch": arch, "score": score}) + "\n"

    run = tmp_path
    lines = [line(0, 1.0, 1), line(0, 3.0, 2), line(0, None, 4), line(1, 2.0, 0), line(1, 0.5, 3)]
    (run / "journal.jsonl").write_text("".join(lines))
    units = {"heads": [4, 4], "channels": [64, 64]}
    (run / "summary.json").write_text(json.dumps({"elites": 2, "base": {"units": units}}))
    first, second = generations(RunData.read(run))
    assert first.elite_scores == [3.0, 1.0] and second.elite_scores == [3.0, 2.0]
    np.testing.assert_allclose(first.width["heads"], [0.375, 1.0])
    np.testing.assert_allclose(second.width["heads"], [0.5, 1.0])  # where it is kept
    np.testing.assert_allclose(second.skipped["heads"], [0.5, 0.0])
    assert first.variance["heads"] == pytest.approx(np.var([0.25, 0.5]) / 2)
    assert second.variance["heads"] == pytest.approx(np.var([0.25, 0.5, 0.0, 0.75]) / 2)
    assert first.variance["channels"] == 0.0
