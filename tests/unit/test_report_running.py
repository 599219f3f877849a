"""Pages of what is still running: searches, metric searches and studies, from their first second on."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from report_run import CONFIG, make_run

from tracenas.commands.report import report
from tracenas.config import ReportConfig
from tracenas.errors import UserError

METRIC = {"kind": "metric search", "model": "m", "sparsity": "0.5", "compare": "row", "seed": 0}
METRIC |= {"population": 2, "elites": 1, "variables": "W,X"}
STUDY = {"kind": "study", "model": "m", "architectures": 12, "seed": 3, "starts": "plain", "data": "text.txt"}


def directory(home: Path, settings: dict[str, Any], records: list[dict[str, Any]], **files: Any) -> Path:
    home.mkdir(exist_ok=True)
    (home / "config.yaml").write_text(yaml.safe_dump(settings))
    for name, content in files.items():
        (home / f"{name}.json").write_text(json.dumps(content))
    if records:
        (home / "journal.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records) + '{"cut off')
    return home


def page(run: Path) -> str:
    path = report(ReportConfig(run=run)).path
    assert path == run / "report.html"
    return path.read_text()


def metric(place: int, expression: dict[str, Any], loss: float | None) -> dict[str, Any]:
    status = {"status": "ok"} if loss is not None else {"status": "failed", "reason": "ValueError: no"}
    arch = {"metric": expression["metric"], "tree": expression["tree"]}
    score = None if loss is None else -loss
    record = {"id": f"{place}", "generation": place // 2, "arch": arch, "params": 3, "score": score, "loss": loss}
    return {**record, "seconds": 1.5, "lost": {"weight": 1.0 + place}, **status}


def expression(text: str) -> dict[str, Any]:
    from tracenas.symbolic import locate

    found = locate(text).expression
    return found.to_json() if "metric" in found.to_json() else {"metric": found.infix, "tree": found.to_json()}


KNOWN = [{"name": "magnitude", "metric": "W", "params": 1, "loss": 3.2, "lost": {"weight": 1.0}}]


def test_a_metric_search_while_it_runs(tmp_path: Path) -> None:
    run = directory(tmp_path, METRIC, [])
    assert "Search not finished" in page(run)  # before the known metrics are measured
    directory(tmp_path, METRIC, [], known=KNOWN)
    assert "magnitude" in page(run)
    failed = metric(0, expression("W*X"), None)
    directory(tmp_path, METRIC, [failed], known=KNOWN)
    assert "ValueError: no" in page(run)
    records = [failed, metric(1, expression("W+X"), 3.0), metric(2, expression("W*X"), 2.5)]
    directory(tmp_path, METRIC, records, known=KNOWN)
    text = page(run)
    assert "Search not finished" in text
    for words in ("magnitude", "12.18", "Fitness per generation", "Principles"):  # e^2.5
        assert words in text


def study_record(place: int) -> dict[str, Any]:
    targets = {"plain_0": {"value": 4.0 + place, "by_seed": [], "seconds": 1}, "task_piqa": {"value": 0.1 * place}}
    return {
        "index": place,
        "id": f"{place}",
        "kind": "uniform" if place == 0 else "random",
        "params": 1_200_000 + place,
        "arch": {"layers": [{"heads": 2, "channels": 32 * (place + 1)}, {"skip": True}]},
        "scores": {"phi": -float(place), "loss": float(place), "kl": None},
        "reasons": {"kl": "RuntimeError: no"},
        "targets": targets,
        "seconds": {"scores": 1.0, "targets": 2.0},
    }


def test_a_study_while_it_runs(tmp_path: Path) -> None:
    run = directory(tmp_path, STUDY, [])
    text = page(run)
    assert "Study not finished" in text and "0 of 12" in text
    directory(tmp_path, STUDY, [study_record(0), study_record(1)])
    text = page(run)
    assert "2 of 12" in text and "2/64  ×" in text and "How the proxies order" not in text
    directory(tmp_path, STUDY, [study_record(i) for i in range(4)])
    text = page(run)
    rows = {cells[0]: cells[1:] for cells in _rows(text) if cells[0] in ("phi", "loss", "kl")}
    assert rows["phi"][0].endswith("1.00") and rows["phi"][1].endswith("1.00")
    assert rows["phi"][0] != rows["phi"][1]  # a loss is better when it is low, an accuracy when it is high
    assert rows["loss"][0] == rows["phi"][1]


EVIL = "<script>alert('1')</script>&\"<b>"


def test_a_metric_searchs_texts_are_escaped(tmp_path: Path) -> None:
    failed = {**metric(0, expression("W*X"), None), "reason": EVIL}
    scored = metric(1, {**expression("W+X"), "metric": EVIL}, 3.0)
    known = [{**KNOWN[0], "name": EVIL, "metric": EVIL}]
    text = page(
        directory(tmp_path, {**METRIC, "model": EVIL, "sparsity": EVIL, EVIL: EVIL}, [failed, scored], known=known)
    )
    assert text.count("<script") == 1 and "<b>" not in text.replace("<b>tracenas</b>", "").replace(
        "<figcaption><b>", ""
    )
    assert text.count("&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&amp;&#34;&lt;b&gt;") > 8


def test_a_studys_texts_are_escaped(tmp_path: Path) -> None:
    records = [{**study_record(i), "kind": EVIL, "scores": {EVIL: float(i)}} for i in range(4)]
    text = page(directory(tmp_path, {**STUDY, "model": EVIL, "seed": EVIL, EVIL: EVIL}, records))
    assert text.count("<script") == 1 and "<b>" not in text.replace("<b>tracenas</b>", "")
    assert text.count("&lt;script&gt;") > 8


def _rows(text: str) -> list[list[str]]:
    import re

    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", text, re.S)
    cells = [[re.sub("<.*?>", "", cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row)] for row in rows]
    return [row for row in cells if row]


@pytest.mark.parametrize("kind", ["search", "run"])
def test_a_search_that_has_only_begun(kind: str, tmp_path: Path) -> None:
    run = directory(tmp_path, {"kind": kind, **CONFIG, "strategy": "guided"}, [])
    text = page(run)
    for words in ("Search not finished", "SmolLM2-135M", "guided", "wikitext2"):
        assert words in text


def test_a_demo_is_drawn_from_its_run(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    text = page(directory(tmp_path, {"kind": "demo"}, []))
    assert "SmolLM2-135M" in text


@pytest.mark.parametrize(
    ("settings", "files", "words"),
    [
        (
            {"kind": "study ablation", "model": "m"},
            {},
            "ablation`, which has no page; accepted: of search",
        ),
        ({"sample_counts": "4,8", "model": "m"}, {}, "of `tracenas study ablation`"),
        ({"ratios": "search", "model": "m"}, {}, "of `tracenas sparsify`"),
        ({}, {"recover.yaml": "kind: recover"}, "of `tracenas recover`"),
        ({"kind": ["a"]}, {}, "which has no page"),
    ],
)
def test_other_directories_are_told_in_one_line(
    settings: dict[str, Any], files: dict[str, str], words: str, tmp_path: Path
) -> None:
    run = directory(tmp_path, settings, [study_record(0)])
    for name, content in files.items():
        (run / name).write_text(content)
    with pytest.raises(UserError, match=words):
        report(ReportConfig(run=run))
    assert not (run / "report.html").exists()


def test_an_older_directory_is_known_by_its_settings(tmp_path: Path) -> None:
    old = {key: value for key, value in STUDY.items() if key != "kind"}
    assert "Study not finished" in page(directory(tmp_path / "study", old, [study_record(0)]))
    old = {key: value for key, value in METRIC.items() if key != "kind"}
    assert "Search not finished" in page(directory(tmp_path / "metric", old, [metric(1, expression("W+X"), 3.0)]))
