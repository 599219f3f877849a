"""The front of a search of all sizes in its report: pictures, knee, ten points and their commands."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from report_run import BASE, make_run

from tracenas.errors import UserError
from tracenas.reporting import write_report
from tracenas.reporting.charts.front import front_pictures, knee
from tracenas.reporting.data.front import FrontData
from tracenas.reporting.data.run import RunData
from tracenas.strategies.dominance import non_dominated


def make_front(path: Path, *, loss: bool = True, **changes: Any) -> Path:
    """A run whose candidates are of many sizes, with what each takes to decode."""
    run = make_run(path, layers=6, iterations=4, failing=0.0)
    records = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    for place, record in enumerate(records):
        share = 0.5 + 0.45 * (place * 7 % 45) / 45
        record["params"] = round(share * BASE)
        record["score"] = -(3.2 + 0.8 * (0.95 - share) ** 2 + 0.01 * (place % 9))
        record["loss"] = -record["score"] if loss else None
    (run / "journal.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    costs = {
        r["id"]: {"params": r["params"], "decode_ms": r["params"] / BASE * 8 + n % 5 / 4} for n, r in enumerate(records)
    }
    points = {r["id"]: (*costs[r["id"]].values(), r["score"]) for r in records}
    members = [
        {"id": r["id"], "generation": r["generation"], "score": r["score"], "loss": r["loss"], "costs": costs[r["id"]]}
        for r in sorted(records, key=lambda r: r["params"])
        if r["id"] in non_dominated(points)
    ]
    summary = json.loads((run / "summary.json").read_text())
    summary["front"] = {"costs": ["params", "decode_ms"], "members": members, "hypervolume": [0.1, 0.12, 0.13, 0.13]}
    summary["base"]["loss"] = 3.2
    (run / "summary.json").write_text(json.dumps(summary | changes))
    curve = [
        {"costs": {"params": s * BASE, "decode_ms": 8 * s}, "loss": 3.6 - s / 3, "measured": None} for s in (0.5, 0.9)
    ]
    curve[1]["measured"] = 3.31
    pictured = {
        "base": {"loss": 3.2, "costs": {"params": BASE, "decode_ms": 8.5}},
        "candidates": costs,
        "curves": {"uniform": curve},
    }
    (run / "front.json").write_text(json.dumps(pictured))
    return run


def test_every_cost_is_a_picture_with_all_candidates_and_the_front(tmp_path: Path) -> None:
    run = RunData.read(make_front(tmp_path / "run"))
    front = FrontData.read(run.path, run.summary)
    assert front is not None
    pictures = list(front_pictures(run, front))
    assert [picture.name for picture in pictures] == ["Parameters against loss", "Decoding a token against loss"]
    for picture, place in zip(pictures, (0, 1), strict=True):
        names = {c.id: (list(front.candidates[c.id].values())[place], -(c.loss or 0.0)) for c in run.scored}
        best = non_dominated(names)
        assert picture.picture.count('class="dot') == len(run.scored)
        assert picture.picture.count('class="point found"') == len(best)
        assert picture.picture.count('class="star"') == 1 and "knee, " in picture.picture
        assert picture.picture.count("line dashed uniform") == 1 and "uniform: loss 3.310" in picture.picture
        assert ("dashed uniform", "uniform") in picture.legend and "Dashed: predicted" in picture.note
    tip = re.search(r"<title>([0-9a-f]{16}: [^<]*)</title>", str(pictures[0].picture))
    assert tip is not None and re.fullmatch(
        r"[0-9a-f]{16}: loss [\d.]+, perplexity [\d.]+, [\d.]+M parameters, decoding a token [\d.]+ ms", tip[1]
    )


def test_the_page_has_ten_points_with_all_costs_and_the_command_of_each(tmp_path: Path) -> None:
    run = make_front(tmp_path / "run")
    page = write_report(run).read_text()
    members = json.loads((run / "summary.json").read_text())["front"]["members"]
    assert f"{len(members)} architectures that no other costs as little as and scores as well" in page
    commands = re.findall(r"<code>(tracenas best [^<]*)</code>", page)
    assert len(commands) == min(10, len(members))
    first, last = members[0]["costs"], members[-1]["costs"]
    assert f"--budget params={first['params']} --budget decode_ms={first['decode_ms']:.15g}" in commands[0]
    assert f"--budget params={last['params']}" in commands[-1]
    assert commands[0].endswith("tracenas prune HuggingFaceTB/SmolLM2-135M --arch point-1.json --out point-1")
    assert "Hypervolume after every generation" in page and "at the upper end of the front" in page
    assert page.index('id="front"') < page.index('id="comparison"')


def test_a_front_of_scores_without_losses_has_its_points_and_no_picture(tmp_path: Path) -> None:
    page = write_report(make_front(tmp_path / "run", loss=False)).read_text()
    assert "The front of all sizes" in page and "against loss" not in page and "point-1.json" in page


def test_a_run_that_goes_on_shows_what_is_predicted_and_then_what_is_measured(tmp_path: Path) -> None:
    run = make_front(tmp_path / "run")
    facts = json.loads((run / "summary.json").read_text())["front"]
    (run / "summary.json").unlink()
    pictured = json.loads((run / "front.json").read_text())
    (run / "front.json").write_text(json.dumps({**pictured, **facts}))
    page = write_report(run).read_text()
    assert f"{len(facts['members'])} architectures that no other costs" in page and 'class="point found"' in page
    nothing = {"costs": facts["costs"], "members": [], "hypervolume": []}
    (run / "front.json").write_text(json.dumps({**pictured, **nothing, "candidates": {}}))
    page = write_report(run).read_text()
    assert "Nothing is measured yet: what the sensitivity table predicts, by parameters and decoding a token" in page
    assert "line dashed uniform" in page and "knee" not in page and "point-1.json" not in page


def test_a_run_without_a_front_says_nothing_of_one(tmp_path: Path) -> None:
    assert "The front of all sizes" not in write_report(make_run(tmp_path / "run", layers=4, iterations=2)).read_text()


def test_what_the_pictures_need_may_be_missing_or_is_named(tmp_path: Path) -> None:
    run = make_front(tmp_path / "run")
    (run / "front.json").unlink()
    assert "point-1.json" in write_report(run).read_text()
    (run / "front.json").write_text('{"candidates": 3}')
    with pytest.raises(UserError, match=r"front\.json.*expected an object"):
        write_report(run)


@pytest.mark.parametrize(
    ("points", "place"),
    [
        ([(0.0, 1.0), (1.0, 0.0)], None),
        ([(0.0, 1.0), (1.0, 0.1), (5.0, 0.05), (10.0, 0.0)], 1),
        ([(0.0, 1.0), (8.0, 0.6), (10.0, 0.0)], None),  # nothing lies below the line between the ends
    ],
)
def test_the_knee_lies_farthest_below_the_line_between_the_ends(
    points: list[tuple[float, float]], place: int | None
) -> None:
    assert knee(points) == place
