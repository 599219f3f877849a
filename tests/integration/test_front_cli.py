"""`tracenas search --front`, and `tracenas best` on its run, by the command line on a tiny model."""

import html
import json
import re
import shlex
import shutil
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from command_lines import printed, refused
from latency_tables import made_table, written
from tiny import save_tiny, save_words

import tracenas
from tracenas.cli import invoke
from tracenas.commands.search import stage
from tracenas.journal import Journal
from tracenas.pipeline.run_directory import SELECTION
from tracenas.reporting import write_report
from tracenas.strategies import Progress
from tracenas.strategies.selection import trials_from_json

pytestmark = pytest.mark.integration

SETTINGS = ["--samples", "4", "--seq-len", "32", "--threads", "1", "--channel-quantum", "8"]
SMALL = ["--population", "8", "--elites", "2", "--iterations", "3", "--front", "--from", "60%"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A tiny model of grouped queries, a text, and the run of a front."""
    home = tmp_path_factory.mktemp("front")
    save_tiny(home / "llama", "llama", tokenizer)
    save_words(home / "text.txt", 1500)
    assert invoke([*search(home, home / "run"), *SMALL]) == 0
    return home


def search(home: Path, out: Path) -> list[str]:
    return ["search", str(home / "llama"), "--data", str(home / "text.txt"), "--out", str(out), *SETTINGS]


def held_out(run: Path) -> dict[str, float]:
    """What the search's best candidates came to on held-out text."""
    return {trial.id: trial.mean for trial in trials_from_json(json.loads((run / SELECTION).read_text()), where="test")}


def test_one_journal_holds_the_best_of_every_size(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = json.loads((home / "run" / "summary.json").read_text())
    base, front = summary["base"]["params"], summary["front"]
    assert front["costs"] == ["params"] and summary["budget"]["limit"] == int(0.95 * base)
    records = {r["id"]: r for r in Journal(home / "run" / "journal.jsonl").read()}
    members = front["members"]
    sizes = [m["costs"]["params"] for m in members]
    assert sizes == sorted(set(sizes)) and all({"kv_cache", "memory", "flops"} <= m["costs"].keys() for m in members)
    assert [m["score"] for m in members] == sorted(m["score"] for m in members)
    for member in members:
        record = records[member["id"]]
        assert (record["params"], record["score"]) == (member["costs"]["params"], member["score"])
        better = [r for r in records.values() if r["params"] <= record["params"] and r["score"] > member["score"]]
        assert not better
    assert front["hypervolume"] == sorted(front["hypervolume"]) and len(front["hypervolume"]) == 3
    trials = held_out(home / "run")
    for share in (0.7, 0.85):
        found = printed(capsys, ["best", str(home / "run"), "--params", f"{100 * share}%"])
        fitting = [r for r in records.values() if r["params"] <= int(share * base) and "stopped" not in r]
        expected = max(fitting, key=lambda r: r["score"])["id"]
        if expected in trials:  # the search's best candidates, between which held-out text has decided
            expected = min((r["id"] for r in fitting if r["id"] in trials), key=trials.__getitem__)
        assert found["id"] == expected


def test_any_point_of_it_is_pruned(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "point.json"
    found = printed(capsys, ["best", str(home / "run"), "--params", "75%", "--out", str(out)])
    argv = ["prune", str(home / "llama"), "--arch", str(out), "--out", str(tmp_path / "m"), "--compensate", "auto"]
    assert printed(capsys, argv)["scored_loss"] == pytest.approx(found["loss"], abs=1e-4)


def test_a_front_is_gone_on_with(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Path(shutil.copytree(home / "run", tmp_path / "run"))
    whole = (run / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (run / "journal.jsonl").write_bytes(b"".join(whole[:11]))
    for name in ("best.json", "summary.json"):
        (run / name).unlink()
    printed(capsys, ["resume", str(run)])

    def timeless(lines: list[bytes]) -> list[dict[str, Any]]:
        return [{**json.loads(line), "seconds": 0} for line in lines]

    assert timeless((run / "journal.jsonl").read_bytes().splitlines()) == timeless(whole)
    stored = [json.loads((at / "summary.json").read_text())["front"] for at in (home / "run", run)]
    assert stored[0] == stored[1]


def test_the_front_is_drawn_from_its_prediction_on_and_after_every_generation(home: Path, tmp_path: Path) -> None:
    run, seen = tmp_path / "run", list[dict[str, Any]]()

    def look(_: Progress) -> None:
        seen.append(json.loads((run / "front.json").read_text()))

    sizes = {"population": 4, "elites": 2, "iterations": 2, "samples": 2, "seq_len": 32, "compensate_samples": 4}
    data = {"data": str(home / "text.txt"), "out": run}
    tracenas.search(str(home / "llama"), **data, **sizes, front=True, on_generation=look)  # type: ignore[arg-type]
    facts = json.loads((run / "summary.json").read_text())["front"]
    assert [len(at["hypervolume"]) for at in seen] == [1, 2]
    for at in seen:
        assert {"fisher", "uniform"} <= at["curves"].keys() and at["members"]
    last = json.loads((run / "front.json").read_text())
    assert {key: last[key] for key in facts} == facts == {key: seen[-1][key] for key in facts}

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stage, "run_search", stop)
        tracenas.search(str(home / "llama"), **{**data, "out": tmp_path / "begun"}, **sizes, front=True)  # type: ignore[arg-type]
    begun = json.loads((tmp_path / "begun" / "front.json").read_text())
    assert begun["candidates"] == {} and begun["members"] == [] and begun["curves"]["fisher"][0]["measured"] is None
    assert "Nothing is measured yet" in write_report(tmp_path / "begun").read_text()


def test_a_front_over_the_cache_beside_a_budget(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [*search(home, tmp_path / "run"), *SMALL[:7], "--costs", "kv_cache", "--from", "40%", "--params", "90%"]
    summary = printed(capsys, argv)
    assert summary["front"]["costs"] == ["kv_cache"] and {"kv_cache", "params"} == summary["budgets"].keys()
    costs = [member["costs"]["kv_cache"] for member in summary["front"]["members"]]
    assert costs[0] < 0.7 * 512 and costs[-1] <= 0.95 * 512  # K and V of two groups, 8 wide, in 4 blocks of fp32


@pytest.fixture(scope="module")
def fast(home: Path) -> Path:
    """The run of a front of parameters and milliseconds, in a race of two processes."""
    written(home / "table.json", made_table(home / "llama", channel_quantum=8))
    assert invoke([*two_costs(home, home / "fast"), "--workers", "2"]) == 0
    return home / "fast"


def two_costs(home: Path, out: Path) -> list[str]:
    table = ["--latency", str(home / "table.json"), "--costs", "params,decode_ms", "--budget", "decode_ms=90%"]
    return [*search(home, out), *SMALL, *table, "--population", "12"]


@pytest.mark.slow
def test_a_front_of_two_costs_is_the_same_with_any_number_of_workers(home: Path, fast: Path) -> None:
    assert invoke(two_costs(home, home / "alone")) == 0

    def timeless(run: Path) -> list[dict[str, Any]]:
        return [{**record, "seconds": 0} for record in Journal(run / "journal.jsonl").read()]

    assert timeless(fast) == timeless(home / "alone")
    assert all("terms" in record for record in timeless(fast))  # they raced


def test_best_gives_any_point_of_two_costs(fast: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = json.loads((fast / "summary.json").read_text())
    front, base = summary["front"], summary["base"]["params"]
    assert front["costs"] == ["params", "decode_ms"] and front["hypervolume"] == sorted(front["hypervolume"])
    points = [(m["costs"]["params"], m["costs"]["decode_ms"], m["score"]) for m in front["members"]]
    for a, b in permutations(points, 2):
        assert not (a[0] <= b[0] and a[1] <= b[1] and a[2] >= b[2])
    stopped = {r["id"] for r in Journal(fast / "journal.jsonl").read() if "stopped" in r}
    assert stopped.isdisjoint(m["id"] for m in front["members"])
    limits = summary["budgets"]
    assert limits["params"]["limit"] == int(0.95 * base)
    for params, time, score in points:
        assert time <= limits["decode_ms"]["limit"] and params <= limits["params"]["limit"]
        asked = ["--params", str(params), "--budget", f"decode_ms={time + 1e-6:.6f}ms"]
        found = printed(capsys, ["best", str(fast), *asked])
        assert found["score"] >= score or found["id"] in held_out(fast)


def test_commands_of_its_report_give_its_points(
    fast: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["report", str(fast)]) == 0
    page = html.unescape((fast / "report.html").read_text())
    members = json.loads((fast / "summary.json").read_text())["front"]["members"]
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"<code>tracenas (best [^<]*) && tracenas (prune [^<]*)</code>", page)
    assert len(commands) == min(10, len(members))
    best, prune = (shlex.split(words) for words in commands[0])
    found = printed(capsys, best)
    assert found["id"] == members[0]["id"] and found["costs"] == members[0]["costs"]
    made = printed(capsys, [*prune, "--compensate", "auto"])
    assert made["params"] == members[0]["costs"]["params"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--front", "--strategy", "evolution"], "front goes with strategy guided"),
        (["--front", "--race", "on", "--proxy", "phi", "--strategy", "guided"], "only a single proxy that is a mean"),
        (["--front", "--from", "96%"], "is not below the front's upper end"),
        (["--front", "--from", "1%"], "feasible"),
        (["--front", "--costs", "parms"], "unknown budget 'parms': did you mean 'params'?"),
        (["--front", "--costs", "params,params"], "expected one to three different budgets"),
        (["--front", "--costs", "params,flops,memory,kv_cache"], "expected one to three different budgets"),
        (["--front", "--costs", "params,decode_ms"], "budget decode_ms needs --latency"),
        (["--params", "80%", "--from", "40%"], "need front"),
    ],
)
def test_what_is_no_front_is_refused(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert message in refused(capsys, [*search(home, tmp_path / "out"), *options])
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())
