"""The checkpoints of a front in its report and on the terminal: a row per size with what every stage came to."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from report_run import BASE
from test_report_front import make_front
from test_report_stages import spread, task, write_recovery

from tracenas.errors import UserError
from tracenas.reporting import write_report
from tracenas.reporting.charts.stages import checkpoint_charts
from tracenas.reporting.data.stages import Stages
from tracenas.reporting.stage_tables import checkpoints_table, stage_tables

SIZES = {"60%": 0.6, "75%": 0.75, "90%": 0.9}


def make_written(path: Path, sizes: Sequence[str] = tuple(SIZES), tasks: Sequence[str] = ("piqa",)) -> Path:
    """A run of a front whose checkpoints went through all stages; as if it had been moved since."""
    run = make_front(path)
    rows = [checkpoint("base", 1.0, 20.0, tasks)]
    for size in sizes:
        share = SIZES[size]
        row = checkpoint(size, share, 20 / share**2, tasks)
        place = Path("/before/run/checkpoints") / f"params-{size[:-1]}"
        recovered = {"perplexity": 20 / share, "nll": 3.0, "path": str(place / "recovered")}
        rows.append({**row, "written": "ridge", "path": str(place / "pruned"), "recovered": recovered})
        write_recovery(run / "checkpoints" / place.name / "recovered", 2 - share)
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "checkpoints": rows, "comparison": []}))
    kinds = [("base", summary["model"]), *((row["size"], row["recovered"]["path"]) for row in rows[1:])]
    results = [{**row["eval"], "model": model} for row, (_, model) in zip(rows, kinds, strict=True)]
    (run / "evaluation.json").write_text(json.dumps({"results": results, "settings": {}}))
    timed = [{**row["bench"][0], "model": model} for row, (_, model) in zip(rows, kinds, strict=True)]
    (run / "bench.json").write_text(json.dumps({"models": timed, "setting": {}}))
    return run


def checkpoint(size: str, share: float, perplexity: float, tasks: Sequence[str]) -> dict[str, Any]:
    row: dict[str, Any] = {"size": size, "loss": 4 - share, "costs": {"params": round(share * BASE)}}
    row |= {"params": round(share * BASE), "perplexity": perplexity, "nll": 3.0, "tokens": 1000}
    row["eval"] = {"params": row["params"], "tasks": {name: task(share / 2, share / 2) for name in tasks}}
    first = {"batch": 1, "params": row["params"], "ttft_ms": spread(900 * share), "tpot_ms": spread(30 * share, 0.5)}
    first["decode_speedup"] = spread(1 / share)
    return {**row, "bench": [first, {**first, "batch": 8, "tpot_ms": spread(60.0)}]}


def test_every_size_is_a_row_with_what_every_stage_came_to(tmp_path: Path) -> None:
    stages = Stages.read(make_written(tmp_path / "run"))
    table = checkpoints_table(stages)
    assert table.columns == [
        *("Size", "Parameters", "Loss", "Perplexity", "Recovered", "piqa, %"),
        *("TPOT, ms", "Decode ×", "Realisation", "In checkpoints/"),
    ]
    base, first, *_ = table.rows
    assert base == ["base", "135M", "3.000", "20.00", "–", "50.0 ± 1.2", "30.00", "1.00", "–", "–"]
    assert first[3:] == [
        "55.56",
        "33.33",
        "30.0 ± 1.2",
        "18.00",
        "1.67",
        "ridge",
        "params-60/recovered",
    ]
    names = [recovery.name for recovery in stages.recoveries]
    assert names == list(SIZES)
    assert stages.evaluations[0].names == stages.benches[0].names == ("base", *(f"{size} recovered" for size in SIZES))
    assert stage_tables(stages)[0].title == "checkpoints of the front"


def test_more_tasks_than_a_few_are_an_average_or_stand_below(tmp_path: Path) -> None:
    run = make_written(tmp_path / "run", tasks=("a", "b", "c", "d"))
    assert not [name for name in checkpoints_table(Stages.read(run)).columns if "%" in name]
    summary = json.loads((run / "summary.json").read_text())
    for row in summary["checkpoints"]:
        row["eval"]["average"] = {"value": 0.4321, "stderr": 0.0042}
    (run / "summary.json").write_text(json.dumps(summary))
    table = checkpoints_table(Stages.read(run))
    assert [row[table.columns.index("Average, %")] for row in table.rows] == ["43.2 ± 0.4"] * 4


def test_pictures_have_every_size_as_written_and_recovered(tmp_path: Path) -> None:
    run = make_written(tmp_path / "run")
    by_size, by_speed = checkpoint_charts(Stages.read(run))
    assert (by_size.name, by_speed.name) == ("Perplexity by size", "Perplexity by speed")
    for chart in (by_size, by_speed):
        tips = re.findall(r"<title>([^<]*)</title>", chart.picture)
        assert tips[:2] == ["60% as written: perplexity 55.56", "75% as written: perplexity 35.56"] and len(tips) == 6
        assert [name for _, name in chart.legend] == ["as written", "recovered", "base"]
    page = write_report(run).read_text()
    assert "<code>params-90/recovered</code>" in page and 'class="line series-2"' in page
    assert "Perplexity, base to 60%" in page and "recovered, as written 55.6" in page
    (run / "checkpoints" / "params-60" / "recovered" / "recovery.json").unlink()  # goes on
    assert "so far" in write_report(run).read_text()


def test_what_is_not_measured_yet_is_left_out(tmp_path: Path) -> None:
    run = make_written(tmp_path / "run", ["75%"])
    summary = json.loads((run / "summary.json").read_text())
    for row in summary["checkpoints"]:
        for stage in ("recovered", "eval", "bench"):
            row.pop(stage, None)
    (run / "summary.json").write_text(json.dumps(summary))
    stages = Stages.read(run)
    assert checkpoints_table(stages).columns[3:] == ["Perplexity", "Realisation", "In checkpoints/"]
    assert checkpoints_table(stages).rows[1][-1] == "params-75/pruned"
    assert [chart.name for chart in checkpoint_charts(stages)] == ["Perplexity by size"]
    (run / "summary.json").write_text(json.dumps({**summary, "checkpoints": [3]}))
    with pytest.raises(UserError, match="checkpoints: expected an object"):
        Stages.read(run)
