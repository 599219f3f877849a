"""`tracenas run --front` with recovery, evaluation and speed: every size through all stages, resumed exactly."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_lines import printed, refused_at_last
from recovery_toys import log_of, write_text
from test_recover import Interrupted
from tiny import save_tiny

import tracenas
from tracenas.cli import invoke
from tracenas.commands.recover.training import RunLog

pytestmark = pytest.mark.integration

SIZES = ("60%", "80%")
RECOVER = {"method": "distill", "max_steps": 4, "global_batch": 2, "seq_len": 16, "log_every": 1, "save_every": 2}
STAGES: dict[str, Any] = {
    "recover": {**RECOVER, "windows": 4},
    "eval": {"windows": 3},
    "bench": {"prompt": 8, "new_tokens": 3, "trials": 2, "no_memory": True},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A tiny model and texts."""
    home = tmp_path_factory.mktemp("front-stages")
    save_tiny(home / "model", "llama", tokenizer)
    write_text(home / "text.txt", 60)
    write_text(home / "held-out.txt", 10, seed=1)
    return home


def command(home: Path, out: Path, *more: str, **sections: Any) -> list[str]:
    settings = {"model": "model", "data": "text.txt", "text": "held-out.txt"}
    settings = {name: str(home / file) for name, file in settings.items()} | {"out": str(out)}
    settings |= {
        "front": True,
        "checkpoints": ",".join(SIZES),
        "samples": 4,
        "seq_len": 32,
        "windows": 4,
        "proxy": "phi",
    }
    settings |= {"population": 8, "elites": 2, "iterations": 2, "channel_quantum": 8, "threads": 1, "device": "cpu"}
    file = out.with_name(f"{out.name}.yaml")
    file.write_text(yaml.safe_dump({**settings, **sections}))
    return ["run", "--config", str(file), *more]


@pytest.fixture(scope="module")
def finished(home: Path) -> Path:
    """A run with everything."""
    assert invoke(command(home, home / "whole", **STAGES)) == 0
    return home / "whole"


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def inside(run: Path, rows: list[dict[str, Any]]) -> list[str]:
    return [Path(row["model"]).relative_to(run).as_posix() for row in rows]


def test_every_size_goes_through_all_stages(home: Path, finished: Path) -> None:
    base, *rows = read(finished / "summary.json")["checkpoints"]
    evaluated, timed = read(finished / "evaluation.json")["results"], read(finished / "bench.json")["models"]
    assert inside(finished, evaluated[1:]) == [
        f"checkpoints/params-{size}/{kind}" for size in (60, 80) for kind in ("pruned", "recovered")
    ]
    assert evaluated[0]["model"] == timed[0]["model"] == str(home / "model")  # the base once
    assert inside(finished, timed[1:]) == [f"checkpoints/params-{size}/recovered" for size in (60, 80)]
    assert "recovered" not in base and base["eval"]["nll"] == evaluated[0]["nll"]
    for place, row in enumerate(rows):
        recovered = finished / "checkpoints" / f"params-{row['size'][:-1]}" / "recovered"
        assert row["recovered"]["path"] == str(recovered) and row["recovered"]["nll"] != row["nll"]
        assert row["eval"]["nll"] == evaluated[2 + 2 * place]["nll"]
        assert row["bench"] == [{key: value for key, value in timed[1 + place].items() if key != "model"}]
        assert row["params"] <= int(row["size"][:-1]) / 100 * base["params"]
        assert row["params"] == row["eval"]["params"] == row["bench"][0]["params"] == row["costs"]["params"]
    smaller, larger = (
        yaml.safe_load(path.read_text()) for path in sorted(finished.glob("checkpoints/*/*/recover.yaml"))
    )
    assert {key for key in smaller if smaller[key] != larger[key]} == {"model", "out"}


def test_terminal_page_and_json_show_all_sizes(home: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    times = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert invoke(["resume", str(finished)]) == 0  # nothing is done again
    said = capsys.readouterr().out
    again = {path.name for path, time in times.items() if path.stat().st_mtime_ns != time}
    assert again <= {"best.json", "summary.json", "report.html"}
    for words in ("checkpoints of the front", "Recovered", "TPOT, ms", "params-60/recovered", "80% pruned"):
        assert words in said
    page = (finished / "report.html").read_text()
    for words in (
        ">Recovery<",
        ">Evaluation<",
        ">Speed and memory<",
        "60% recovered",
        "80% pruned",
        "Perplexity by size",
    ):
        assert words in page
    told = printed(capsys, command(home, finished, "--resume", **STAGES))
    assert {"search", "checkpoints", "recovered", "evaluation", "bench", "report"} == set(told)
    assert told["checkpoints"] == read(finished / "summary.json")["checkpoints"]
    assert [row["name"] for row in told["recovered"]] == list(SIZES)
    (run,) = printed(capsys, ["runs", str(finished)])["runs"]
    assert (run["state"], run["progress"]) == ("finished", "5 stages")


def test_a_notebook_has_a_row_per_size(finished: Path) -> None:
    pytest.importorskip("pandas")
    outcome = tracenas.resume(finished)
    frame = outcome.to_frame()
    assert frame["size"].tolist() == ["base", *SIZES] and frame["recovered.perplexity"].notna().tolist() == [
        False,
        True,
        True,
    ]
    assert {"costs.params", "eval.nll", "perplexity"} <= set(frame.columns)
    shown = outcome._repr_html_()
    assert "<caption>checkpoints of the front</caption>" in shown and "<td>60%</td>" in shown


def test_interrupted_between_sizes_and_resumed_to_the_same(
    home: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first size is recovered, the second has begun."""
    out, original = tmp_path / "run", RunLog.on_step_end

    def dies(self: RunLog, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        original(self, args, state, control, **kwargs)
        if (out / "checkpoints/params-60/recovered/recovery.json").exists() and state.global_step == 3:
            raise Interrupted

    with monkeypatch.context() as patched:
        patched.setattr(RunLog, "on_step_end", dies)
        patched.setenv("TRACENAS_TRACEBACK", "1")
        with pytest.raises(Interrupted):
            invoke(command(home, out, **STAGES))
    (run,) = printed(capsys, ["runs", str(out)])["runs"]
    assert run["state"] != "finished" and run["progress"] == "stage 3 of 5: recover, 1 of 2"
    kept = out / "checkpoints/params-60/recovered/model.safetensors"
    written = kept.stat().st_mtime_ns
    assert invoke(["resume", str(out)]) == 0
    assert kept.stat().st_mtime_ns == written
    assert_same(out, finished)


def assert_same(out: Path, finished: Path) -> None:
    """All results, but for times."""
    for folder in ("params-60", "params-80"):
        one, other = (run / "checkpoints" / folder for run in (out, finished))
        assert log_of(one / "recovered") == log_of(other / "recovered")
        for kind in ("pruned", "recovered"):
            assert (one / kind / "model.safetensors").read_bytes() == (other / kind / "model.safetensors").read_bytes()
    rows = [read(run / "summary.json")["checkpoints"] for run in (out, finished)]
    for row in (*rows[0], *rows[1]):
        assert row.pop("bench")
        for part in (row, row.get("recovered", {})):
            part.pop("path", None)
    assert rows[0] == rows[1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("moment", ["params-60/pruned.json", "params-80/pruning.json", "params-80/recovered/log.jsonl"])
def test_killed_and_resumed_to_the_same(home: Path, finished: Path, tmp_path: Path, moment: str) -> None:
    out = tmp_path / "run"
    child = os.fork()
    if child == 0:
        os._exit(invoke(command(home, out, **STAGES)))
    while not (out / "checkpoints" / moment).exists():
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "the run ended before"
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert not (out / "bench.json").exists()
    assert invoke(["resume", str(out)]) == 0
    assert_same(out, finished)


def test_other_settings_are_refused_and_sizes_can_be_added(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, sections = tmp_path / "run", {"recover": STAGES["recover"], "eval": {"windows": 2}}
    argv = command(home, out, "--resume", **sections)
    assert invoke(argv) == 0
    first = read(out / "summary.json")["checkpoints"]
    sized, file = "checkpoints=60%,80%,70%", out / "evaluation.json"
    for change, words in (
        (
            "recover.max_steps=5",
            f"another recover.max_steps: the finished stage has 4, not 5; remove {out}/recovered.json",
        ),
        ("recover.max_steps=5", f" and {out}/checkpoints/params-60/recovered and "),
        ("windows=3", f"another windows: the finished stage has 4, not 3; remove {out}/checkpoints.json to run"),
        (
            "compensate=none",
            f"another compensate: the finished stage has 'best', not 'none'; remove {out}/checkpoints.json",
        ),
        (sized, f"another eval.checkpoints: the finished stage has '60%,80%', not '60%,80%,70%'; remove {file} to run"),
    ):
        assert words in refused_at_last(capsys, [*argv, change])
    file.unlink()
    weights = list(out.glob("checkpoints/*/*/model.safetensors"))
    times = [path.stat().st_mtime_ns for path in weights]
    assert len(weights) == 4 and invoke([*argv, sized]) == 0
    assert [path.stat().st_mtime_ns for path in weights] == times
    rows = read(out / "summary.json")["checkpoints"]
    assert [row["size"] for row in rows] == ["base", "60%", "80%", "70%"] and rows[:3] == first
    assert rows[3]["recovered"]["path"] == str(out / "checkpoints/params-70/recovered") and rows[3]["eval"]["nll"] > 0
