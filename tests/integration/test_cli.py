"""The command line in-process on the demo model: what works, and every complaint in one line with exit status 2."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tracenas.cli import COMMANDS, invoke
from tracenas.demo import calibration_path, heldout_path, model_path

pytestmark = pytest.mark.integration

QUICK = ["--samples", "2", "--seq-len", "32", "--population", "4", "--elites", "2", "--iterations", "2", "--rank", "4"]
SEARCH = ["search", str(model_path()), "--data", str(calibration_path()), "--params", "60%", "--proxy", "phi", *QUICK]


def said(capsys: pytest.CaptureFixture[str], argv: list[str], status: int = 2) -> str:
    """The single line a wrong command line is answered with."""
    assert invoke(argv) == status
    output = capsys.readouterr()
    assert output.out == ""
    lines = output.err.strip().splitlines()
    assert len(lines) == 1, output.err
    assert "Traceback" not in output.err
    return lines[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search."""
    out = tmp_path_factory.mktemp("run") / "run"
    assert invoke([*SEARCH, "--out", str(out)]) == 0
    return out


def test_a_search_leaves_a_complete_run_directory(finished: Path) -> None:
    names = {
        "journal.jsonl",
        "best.json",
        "config.yaml",
        "summary.json",
        "calibration.safetensors",
        "ordering.safetensors",
    }
    assert names <= {p.name for p in finished.iterdir()}
    best = json.loads((finished / "best.json").read_text())
    assert {"architecture", "score", "provenance"} <= set(best)
    records = [json.loads(line) for line in (finished / "journal.jsonl").read_text().splitlines()]
    assert all({"id", "generation", "arch", "params", "score", "loss", "seconds"} <= set(r) for r in records)
    assert best["score"] == max(r["score"] for r in records)
    assert len({r["id"] for r in records}) == len(records)


def test_the_same_command_finds_the_same(finished: Path, tmp_path: Path) -> None:
    assert invoke([*SEARCH, "--out", str(tmp_path / "again")]) == 0
    strip = lambda p: [{k: v for k, v in json.loads(x).items() if k != "seconds"} for x in p.read_text().splitlines()]  # noqa: E731
    assert strip(tmp_path / "again" / "journal.jsonl") == strip(finished / "journal.jsonl")


def test_the_python_api_does_what_the_commands_do(finished: Path, tmp_path: Path) -> None:
    import importlib

    import tracenas

    for package in ("strategies", "reporting"):
        importlib.import_module(f"tracenas.{package}")
    settings = {"samples": 2, "seq_len": 32, "population": 4, "elites": 2, "iterations": 2, "rank": 4, "proxy": "phi"}
    for name in ("a", "b"):  # twice: subpackages of the same name must not take the functions' places
        run = tracenas.search(model_path(), data=calibration_path(), params="60%", out=tmp_path / name, **settings)
    assert run.score == json.loads((finished / "best.json").read_text())["score"]
    pruned = tracenas.prune(model_path(), arch=run.best, out=tmp_path / "pruned")
    table = tracenas.evaluate([model_path(), pruned.path], text=str(heldout_path()), seq_len=32, windows=2).table()
    assert str(pruned.path) in table
    with pytest.raises(tracenas.UserError, match="did you mean 'population'"):
        tracenas.search(model_path(), data="x", params="60%", out=tmp_path / "c", populaton=3)


def test_what_was_scored_is_what_is_pruned(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "pruned"
    argv = [
        "prune",
        str(model_path()),
        "--arch",
        str(finished / "best.json"),
        "--compensate",
        "auto",
        "--out",
        str(out),
    ]
    assert invoke([*argv, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    journal = [json.loads(line) for line in (finished / "journal.jsonl").read_text().splitlines()]
    best = max(journal, key=lambda r: r["score"])
    assert result["loss"] == pytest.approx(best["loss"], abs=1e-4)
    assert result["params"] == best["params"]
    assert f"{result['params']:,} of {result['base_params']:,} parameters" in (out / "README.md").read_text()


def test_score_speaks_the_fixed_json(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["score", str(model_path()), "--arch", str(finished / "best.json")]
    argv += ["--data", str(finished / "calibration.safetensors"), "--rank", "4", "--json"]
    assert invoke(argv) == 0
    scored = json.loads(capsys.readouterr().out)
    assert {"phi", "rho", "loss", "params", "kept"} == set(scored)
    best = json.loads((finished / "best.json").read_text())
    assert scored["phi"] == pytest.approx(best["score"], abs=1e-6)
    layers = best["architecture"]["layers"]
    for layer, heads, channels in zip(layers, scored["kept"]["heads"], scored["kept"]["channels"], strict=True):
        assert (heads is None) == bool(layer.get("skip"))
        assert heads is None or (len(heads), len(channels)) == (layer["heads"], layer["channels"])


def test_a_pruned_checkpoint_can_be_pruned_again(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert invoke(["prune", str(model_path()), "--arch", str(finished / "best.json"), "--out", str(first)]) == 0
    run = tmp_path / "run"
    argv = ["search", str(first), "--data", str(calibration_path()), "--params", "80%", "--proxy", "phi"]
    argv += ["--out", str(run), *QUICK]
    assert invoke(argv) == 0
    assert invoke(["prune", str(first), "--arch", str(run / "best.json"), "--out", str(second)]) == 0
    capsys.readouterr()
    assert invoke(["eval", str(first), str(second), "--text", str(heldout_path()), "--windows", "2", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[1]["params"] <= 0.8 * rows[0]["params"]
    assert {"perplexity", "nll", "tokens"} <= set(rows[0])


def test_eval_of_one_model_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["eval", str(model_path()), "--text", str(heldout_path()), "--windows", "2", "--seq-len", "64", "--json"]
    assert invoke(argv) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["tokens"] == 2 * 63
    assert row["perplexity"] == pytest.approx(2.718281828 ** row["nll"], rel=1e-6)


def test_run_compares_and_reports_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["run", *SEARCH[1:], "--out", str(tmp_path / "r"), "--text", str(heldout_path())]
    argv += ["--windows", "4", "--random-architectures", "1", "--json"]
    assert invoke(argv) == 0
    first = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in first["comparison"]] == ["base", "uniform", "random 1", "found"]
    assert "<html" in Path(first["report"]).read_text()
    assert invoke([*argv, "--resume"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["comparison"] == first["comparison"]


# ---- what the user must never meet -------------------------------------------------------------------------


def test_missing_settings_and_unknown_names(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "o")]
    assert "'model' is required" in said(capsys, ["search"])
    assert "'data' is required" in said(capsys, ["search", str(model_path()), "--params", "50%", *out])
    assert "did you mean 'search'" in said(capsys, ["serach"])
    assert "--populaton" in said(capsys, [*SEARCH, *out, "--populaton", "3"])
    assert "did you mean 'population'" in said(capsys, [*SEARCH, *out, "populaton=3"])
    assert "unknown proxy 'phy': did you mean 'phi'" in said(capsys, [*SEARCH, *out, "--proxy", "phy"])
    assert "unknown saliency" in said(capsys, [*SEARCH, *out, "--saliency", "wand"])
    assert "unknown strategy" in said(capsys, [*SEARCH, *out, "--strategy", "evolve"])
    assert "rank 'big'" in said(capsys, [*SEARCH, *out, "--rank", "big"])
    assert "population" in said(capsys, [*SEARCH, *out, "--population", "many"])
    assert "elites 9" in said(capsys, [*SEARCH, *out, "--elites", "9"])
    assert not (tmp_path / "o").exists()


def test_budgets(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    base = ["search", str(model_path()), "--data", str(calibration_path()), "--out", str(tmp_path / "o")]
    assert "feasible" in said(capsys, [*base, "--params", "1%"])
    assert "more than the base" in said(capsys, [*base, "--params", "70B"])
    assert "expected a share" in said(capsys, [*base, "--params", "half"])
    assert "keep-layers 99" in said(capsys, [*base, "--params", "50%", "--keep-layers", "99"])
    assert "min depth" in said(capsys, [*base, "--params", "50%", "--min-depth", "50"])
    assert not (tmp_path / "o").exists()


def test_models(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rest = ["--data", str(calibration_path()), "--params", "50%", "--out", str(tmp_path / "o")]
    assert "no such directory" in said(capsys, ["search", str(tmp_path / "nothing"), *rest])
    assert "no config.json" in said(capsys, ["search", str(tmp_path), *rest])
    broken = tmp_path / "broken"
    shutil.copytree(model_path(), broken)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "model_type": "lama"}))
    assert "did you mean 'llama'" in said(capsys, ["search", str(broken), *rest])
    (broken / "config.json").write_text("{")
    assert "not JSON" in said(capsys, ["search", str(broken), *rest])
    (broken / "config.json").write_text(json.dumps({**config, "num_hidden_layers": config["num_hidden_layers"] + 1}))
    assert "missing" in said(capsys, ["search", str(broken), *rest])
    (broken / "model.safetensors").write_bytes(b"not safetensors")
    assert "safetensors" in said(capsys, ["search", str(broken), *rest])
    (broken / "model.safetensors").unlink()
    assert "safetensors" in said(capsys, ["search", str(broken), *rest])


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "empty"), (b"broken \xff\xfe", "UTF-8"), (b"too short", "samples")],
    ids=["empty", "not-utf-8", "too-few-tokens"],
)
def test_text(content: bytes, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(content)
    argv = ["search", str(model_path()), "--data", str(text), "--params", "60%", "--out", str(tmp_path / "o")]
    assert words in said(capsys, argv)
    argv = [
        "search",
        str(model_path()),
        "--data",
        str(tmp_path / "no.txt"),
        "--params",
        "60%",
        "--out",
        str(tmp_path / "o"),
    ]
    assert "no.txt" in said(capsys, argv)
    assert not list((tmp_path / "o").glob("*.json*")) if (tmp_path / "o").exists() else True


def test_architectures(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arch = tmp_path / "arch.json"
    argv = ["score", str(model_path()), "--arch", str(arch), "--data", str(calibration_path())]
    assert "no such file" in said(capsys, argv)
    layer: dict[str, Any] = {"heads": 4, "channels": 64}
    for wrong, words in [
        ({"layers": [layer] * 3}, "3 layers"),
        ({"layers": [layer] * 8, "extra": 1}, "unknown key 'extra'"),
        ({"layers": [{**layer, "head": 3}] * 8}, "unknown key 'head'"),
        ({"layers": [{**layer, "channels": 65}] * 8}, "65 channels cannot be kept"),
        ({"layers": [{**layer, "heads": 99}] * 8}, "99 heads cannot be kept"),
        ({"layers": [{**layer, "heads": -1}] * 8}, "whole number"),
        ({"layers": [{"skip": True}] * 8}, "every layer is skipped"),
        ([], "JSON object"),
    ]:
        arch.write_text(json.dumps(wrong))
        assert words in said(capsys, argv)
    arch.write_text(json.dumps({"layers": [layer] * 8}))
    assert "'data' is required" in said(
        capsys, ["prune", str(model_path()), "--arch", str(arch), "--out", str(tmp_path / "p")]
    )
    assert not (tmp_path / "p").exists() or not any((tmp_path / "p").iterdir())


def test_run_directories(finished: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "--resume" in said(capsys, [*SEARCH, "--out", str(finished)])
    other = [*SEARCH, "--out", str(finished), "--resume", "--seed", "7"]
    assert "another seed" in said(capsys, other)
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    lines = (copy / "journal.jsonl").read_text().splitlines(keepends=True)
    (copy / "journal.jsonl").write_text(lines[0] + "{broken\n" + "".join(lines[2:]))
    assert "line 2 is corrupt" in said(capsys, [*SEARCH, "--out", str(copy), "--resume"])
    (copy / "journal.jsonl").write_text("".join(lines[1:]))
    assert "another run" in said(capsys, [*SEARCH, "--out", str(copy), "--resume"])
    taken = tmp_path / "file"
    taken.write_text("x")
    assert "is a file" in said(capsys, [*SEARCH, "--out", str(taken)])
    assert "nowhere" in said(capsys, ["report", str(tmp_path / "nowhere")])


def test_an_unwritable_or_full_disk_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "/proc/tracenas" in said(capsys, [*SEARCH, "--out", "/proc/tracenas/run"])

    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    assert invoke([*SEARCH, "--out", str(tmp_path / "full")]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert not (tmp_path / "full" / "best.json").exists()


def test_a_truncated_journal_is_resumed_to_the_same_result(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    whole = (copy / "journal.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    (copy / "journal.jsonl").write_bytes(b"".join(lines[:3]) + lines[3][: len(lines[3]) // 2])
    (copy / "best.json").unlink()
    assert invoke([*SEARCH, "--out", str(copy), "--resume"]) == 0
    strip = lambda raw: [{k: v for k, v in json.loads(x).items() if k != "seconds"} for x in raw.splitlines()]  # noqa: E731
    assert strip((copy / "journal.jsonl").read_bytes()) == strip(whole)
    assert (
        json.loads((copy / "best.json").read_text())["score"]
        == json.loads((finished / "best.json").read_text())["score"]
    )


def test_settings_that_are_left_out_are_the_runs(tmp_path: Path) -> None:
    """A space of its own: without the setting that it came from, the resumed run still searches that space."""
    out = tmp_path / "run"
    assert invoke([*SEARCH, "--out", str(out), "--min-depth", "8"]) == 0
    whole = (out / "journal.jsonl").read_bytes()
    (out / "journal.jsonl").write_bytes(b"".join(whole.splitlines(keepends=True)[:2]))
    (out / "best.json").unlink()
    assert invoke([*SEARCH, "--out", str(out), "--resume"]) == 0
    strip = lambda raw: [{k: v for k, v in json.loads(x).items() if k != "seconds"} for x in raw.splitlines()]  # noqa: E731
    assert strip((out / "journal.jsonl").read_bytes()) == strip(whole)


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for name in COMMANDS:
        assert invoke([*name.split(), "--help"]) == 0
        assert "Usage: tracenas" in capsys.readouterr().out


def test_exit_statuses_of_the_real_process(tmp_path: Path) -> None:
    run = lambda *argv: subprocess.run([sys.executable, "-m", "tracenas.cli", *argv], capture_output=True, text=True)  # noqa: E731
    assert run("--help").returncode == 0
    wrong = run("search", "nowhere", "--data", "x", "--params", "1", "--out", str(tmp_path))
    assert (wrong.returncode, len(wrong.stderr.strip().splitlines())) == (2, 1)


def test_settings_come_from_yaml_and_are_overridden(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(
        f"model: {model_path()}\ndata: {calibration_path()}\nparams: 60%\nout: {tmp_path / 'o'}\nseed: -1\n"
    )
    assert "seed" in said(capsys, ["search", "--config", str(file)])
    file.write_text(file.read_text() + "populatoin: 3\n")
    assert "did you mean 'population'" in said(capsys, ["search", "--config", str(file), "seed=1"])
    file.write_text("a: [")
    assert "not YAML" in said(capsys, ["search", "--config", str(file)])
