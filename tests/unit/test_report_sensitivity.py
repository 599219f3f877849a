"""The page's picture of a run's sensitivity table, and the rises beside it."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_run import CHANNELS, HEADS, make_run
from test_report import Page, report, rewrite

from tracenas.errors import UserError
from tracenas.reporting import RunData, write_report
from tracenas.reporting.charts.sensitivity import COLUMNS, CostScale, cost_keys, cost_scale
from tracenas.saliency.sensitivity.table import SensitivityTable, WidthCosts

LAYERS = 5
RISES = {"predicted_rise": 0.28, "measured_rise": 0.336, "predicted_rise_mlp": 0.34, "predicted_rise_uniform": 0.9}


def with_table(run: Path, quantum: int = 32, units: dict[str, tuple[int, int]] | None = None) -> SensitivityTable:
    """A table of random costs that fall with the width, in the run's directory."""
    rng = np.random.default_rng(3)
    costs = {}
    for name, (count, step) in (units or {"attention": (HEADS, 1), "mlp": (CHANNELS, quantum)}).items():
        for index in range(LAYERS):
            widths = np.array([0, *range(step, count, step), count])
            rise = np.sort(rng.random(len(widths)))[::-1] * 10.0 ** -rng.integers(0, 6)
            costs[index, name] = WidthCosts(rng.random(count), widths, np.append(rise[:-1], 0.0))
    table = SensitivityTable(costs)
    table.save(run / "sensitivity.safetensors")
    return table


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", layers=LAYERS, iterations=2, **RISES)


def tips(page: Page) -> dict[tuple[str, str], tuple[float, bool]]:
    """By layer and width in words: the cost, and whether it is the found one."""
    found = {}
    for text in page.texts:
        match = re.fullmatch(r"layer (\d+), (.+): ([\d.e−]+) nats(, found)?", text)
        if match:
            found[match[1], match[2]] = float(match[3].replace("−", "-")), bool(match[4])
    return found


def test_every_width_has_its_cost_and_the_found_ones_are_outlined(run: Path) -> None:
    table = with_table(run)
    page = report(run)
    shown = tips(page)
    best = json.loads((run / "best.json").read_text())["architecture"]["layers"]
    for (index, name), one in table.costs.items():
        noun, key = ("attention heads", "heads") if name == "attention" else ("MLP channels", "channels")
        for width, rise in zip(one.widths.tolist(), one.rise.tolist(), strict=True):
            what = f"{width:,} of {one.widths[-1]:,} {noun}" if width else "bypassed"
            value, found = shown[str(index), what]
            if width:  # both sub-blocks are bypassed under one name
                assert value == pytest.approx(rise, rel=6e-3)
                assert found == (best[index].get(key, 0) == width)
    text = (run / "report.html").read_text()
    assert text.count('class="choice"') == 2 * LAYERS
    assert 'href="#sensitivity"' in text


def test_what_was_found_lies_in_a_cell_where_there_are_too_many_widths(run: Path) -> None:
    with_table(run, quantum=2)
    record = json.loads((run / "best.json").read_text())
    record["architecture"]["layers"][1] = {"heads": 5, "channels": 1030}
    (run / "best.json").write_text(json.dumps(record))
    shown = tips(report(run))
    of_mlp = [key for key in shown if key[0] == "1" and key[1].endswith("channels")]
    assert len(of_mlp) == COLUMNS
    assert [key[1] for key in of_mlp if shown[key][1]] == ["1,030 of 1,536 MLP channels"]


def test_predicted_and_measured_rises_stand_beside_it(run: Path) -> None:
    with_table(run)
    text = " ".join(report(run).text.split())
    for row in ("found 0.280 0.336 1.20", "MLP only 0.340 – –", "uniform 0.900 – –"):
        assert row in text, row
    rewrite(run / "summary.json", predicted_rise=None, predicted_rise_mlp=None, predicted_rise_uniform=None)
    text = " ".join(report(run).text.split())
    assert "What every width costs" in text and "MLP only" not in text


def test_a_run_without_a_table_or_a_result_has_no_such_section(run: Path) -> None:
    before = report(run)
    assert "What every width costs" not in before.text and "choice" not in before.tags
    with_table(run)
    for name in ("best.json", "journal.jsonl", "summary.json"):
        (run / name).unlink()
    assert "What every width costs" not in report(run).text


def test_kv_groups_are_attention(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    best = json.loads((run / "best.json").read_text())

    def renamed(architecture: Any) -> None:
        for layer in architecture["layers"]:
            if "heads" in layer:
                layer["kv_heads"] = min(4, layer["heads"])
                layer["heads"] = 3 * layer["kv_heads"]  # which follows from it

    for record in [*[line["arch"] for line in lines], best["architecture"]]:
        renamed(record)
    (run / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "best.json").write_text(json.dumps(best))
    base = json.loads((run / "summary.json").read_text())["base"]
    rewrite(
        run / "summary.json",
        base=base | {"units": {"heads": [HEADS] * LAYERS, "kv_heads": [4] * LAYERS, "channels": [CHANNELS] * LAYERS}},
        kept={},
    )
    with_table(run, units={"attention": (4, 1), "mlp": (CHANNELS, 64)})
    assert cost_keys(RunData.read(run)) == ["kv_heads", "channels"]
    assert ("0", "3 of 4 KV groups") in tips(report(run))


def test_colours_are_logarithmic_on_one_scale(run: Path) -> None:
    with_table(run)
    scale = cost_scale(RunData.read(run))
    assert 0.1 < scale.high <= 1.0 and scale.low in (1e-4, 1e-5)
    assert [CostScale(1e-4, 1.0).share(x) for x in (-1.0, 0.0, 1e-4, 1e-2, 1.0, 2.0)] == [0, 0, 0, 0.5, 1, 1]


def test_a_damaged_table_is_one_line(run: Path) -> None:
    table = with_table(run)
    (run / "sensitivity.safetensors").write_bytes(b"no table")
    with pytest.raises(UserError, match=r"sensitivity.safetensors: not a sensitivity table"):
        write_report(run)
    one = table.costs[0, "mlp"]
    for rise, line in ((one.rise[1:], "widths and costs differ"), (one.rise * np.nan, "costs are not finite")):
        costs = {**table.costs, (0, "mlp"): WidthCosts(one.saliency, one.widths, rise)}
        SensitivityTable(costs).save(run / "sensitivity.safetensors")
        with pytest.raises(UserError, match=rf"block 0, mlp.*{line}"):
            write_report(run)
