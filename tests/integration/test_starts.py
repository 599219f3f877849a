"""A search starts from the closed form, and its run keeps the table: by the command line, on tiny models."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_journals import journal
from safetensors.numpy import load_file
from tiny import save_families

from tracenas.cli import invoke
from tracenas.config import SearchConfig
from tracenas.pipeline import sensitivity
from tracenas.pipeline.refit import fitting
from tracenas.pipeline.resume import resolved_settings

pytestmark = pytest.mark.integration

SETTINGS = ["--seq-len", "32", "--threads", "1", "--channel-quantum", "8"]
SMALL = ["--population", "6", "--elites", "2", "--iterations", "2", "--samples", "4", "--params", "60%"]
FAMILIES = ("llama", "mixtral", "olmo2", "t5")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """Tiny models and a text."""
    return save_families(tmp_path_factory.mktemp("starts"), FAMILIES, tokenizer)


@pytest.fixture(scope="module")
def searched(home: Path) -> Path:
    """The run directory of a search with default starts."""
    assert invoke(search(home, home / "run")) == 0
    return home / "run"


def search(home: Path, out: Path, *options: str, model: str = "llama") -> list[str]:
    return [
        "search",
        str(home / model),
        "--data",
        str(home / "text.txt"),
        "--out",
        str(out),
        *SETTINGS,
        *SMALL,
        *options,
    ]


def printed(capsys: pytest.CaptureFixture[str], argv: list[str]) -> tuple[dict[str, Any], str]:
    """What `--json` says, and standard error."""
    capsys.readouterr()
    assert invoke([*argv, "--json"]) == 0
    out, err = capsys.readouterr()
    return json.loads(out), err


def refused(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    capsys.readouterr()
    assert invoke(argv) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def starts(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "start.json").read_text())
    return found


def same_costs(one: Path, other: Path) -> bool:
    a, b = load_file(one), load_file(other)
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def interrupted(run: Path, copy: Path, lines: int, *lost: str) -> Path:
    """A copy of a run whose journal ends after some lines, without what came later."""
    shutil.copytree(run, copy)
    kept = (run / "journal.jsonl").read_text().splitlines(keepends=True)[:lines]
    (copy / "journal.jsonl").write_text("".join(kept))
    for name in ("best.json", "summary.json", *lost):
        (copy / name).unlink()
    return copy


def test_the_closed_form_is_scored_first(
    home: Path, searched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """fisher is what `prune --method fisher` makes of the run's table; mlp leaves attention alone."""
    found, records = starts(searched), journal(searched)
    assert list(found) == ["fisher", "mlp", "uniform"]
    assert [r["arch"]["layers"] for r in records[:3]] == [one["layers"] for one in found.values()]
    assert all(r["generation"] == 0 and r["status"] == "ok" for r in records[:3])
    assert all(layer["heads"] == 4 for layer in found["mlp"]["layers"])
    assert len({layer["channels"] for layer in found["mlp"]["layers"]}) == 1
    argv = ["prune", str(home / "llama"), "--data", str(home / "text.txt"), "--out", str(tmp_path / "out"), *SETTINGS]
    argv += ["--method", "fisher", "--params", "60%", "--samples", "4", "--compensate", "none"]
    pruned, _ = printed(capsys, [*argv, "--sensitivity", str(searched / "sensitivity.safetensors")])
    one_shot = json.loads((tmp_path / "out" / "architecture.json").read_text())["architecture"]
    assert one_shot["layers"] == found["fisher"]["layers"]
    summary = json.loads((searched / "summary.json").read_text())
    for name in ("mlp", "uniform"):
        assert summary[f"predicted_rise_{name}"] == pruned["one_shot"][f"predicted_rise_{name}"] > 0
    assert summary["predicted_rise"] >= pruned["one_shot"]["predicted_rise"] * (1 - 3e-3)
    base = summary["base"]["loss"]
    assert summary["measured_rise"] == pytest.approx(summary["loss"] - base, abs=1e-12)
    assert summary["measured_rise_mlp"] == pytest.approx(records[1]["loss"] - base, abs=1e-12)
    assert summary["measured_rise_uniform"] == pytest.approx(records[2]["loss"] - base, abs=1e-12)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("compensation", ()),
        ("compensation", ("--proxy", "fisher", "--start", "none")),
        ("calibration", ("--proxy", "loss", "--samples", "16")),
    ],
)
def test_the_table_is_measured_on_text_of_the_run(
    home: Path, searched: Path, tmp_path: Path, text: str, options: tuple[str, ...]
) -> None:
    """What candidates are refitted on, else the calibration: `tracenas sensitivity` on it makes the same table."""
    run = searched
    if options:
        run = tmp_path / "run"
        assert invoke(search(home, run, *options)) == 0
    argv = ["sensitivity", str(home / "llama"), "--data", str(run / f"{text}.safetensors"), *SETTINGS[2:]]
    assert invoke([*argv, "--out", str(tmp_path / "again.safetensors")]) == 0
    assert same_costs(run / "sensitivity.safetensors", tmp_path / "again.safetensors")


def test_one_pass_serves_the_table_and_the_refits(
    home: Path, searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search that measures its table makes no second moments for its refits; without a table it makes them once."""
    passes = []
    counted = fitting.input_moments

    def count(*args: Any) -> Any:
        passes.append(args)
        return counted(*args)

    monkeypatch.setattr(fitting, "input_moments", count)
    monkeypatch.setattr(fitting, "gram_matrices", None)
    assert invoke(search(home, tmp_path / "table")) == 0
    assert not passes and journal(tmp_path / "table") == journal(searched)
    assert invoke(search(home, tmp_path / "none", "--start", "none")) == 0
    assert len(passes) == 1


@pytest.mark.parametrize("lost", [(), ("start.json",), ("start.json", "sensitivity.safetensors")])
def test_a_search_resumed_in_generation_0_is_the_undisturbed_one(
    home: Path,
    searched: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    lost: tuple[str, ...],
) -> None:
    cut = interrupted(searched, tmp_path / "cut", 2, *lost)
    if "sensitivity.safetensors" not in lost:
        monkeypatch.setattr(sensitivity, "measure_sensitivity", None)  # not to be measured again
    resumed, _ = printed(capsys, search(home, cut, "--resume"))
    assert journal(cut) == journal(searched) and starts(cut) == starts(searched)
    assert same_costs(cut / "sensitivity.safetensors", searched / "sensitivity.safetensors")
    whole = json.loads((searched / "summary.json").read_text())
    assert {k: v for k, v in resumed.items() if "rise" in k} == {k: v for k, v in whole.items() if "rise" in k}


def test_a_resumed_search_refuses_another_table_and_other_starts(
    home: Path, searched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = interrupted(searched, tmp_path / "cut", 2)
    assert "--resume with another start" in refused(capsys, search(home, cut, "--resume", "--start", "mlp"))
    argv = ["sensitivity", str(home / "olmo2"), "--data", str(home / "text.txt"), *SETTINGS]
    assert invoke([*argv, "--out", str(cut / "sensitivity.safetensors")]) == 0
    line = refused(capsys, search(home, cut, "--resume"))
    assert "cut/sensitivity.safetensors: a sensitivity table of another model" in line


def test_a_stored_table_is_taken_and_kept(
    home: Path,
    searched: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = tmp_path / "table.safetensors"
    shutil.copyfile(searched / "sensitivity.safetensors", table)
    monkeypatch.setattr(sensitivity, "measure_sensitivity", None)
    for place, options in enumerate(((), ("--saliency", "fisher"))):
        out = tmp_path / str(place)
        assert invoke(search(home, out, "--start", "fisher", "--sensitivity", str(table), *options)) == 0
        assert starts(out) == {"fisher": starts(searched)["fisher"]}
        assert same_costs(out / "sensitivity.safetensors", table)
    other = search(home, tmp_path / "other", "--sensitivity", str(table), model="olmo2")
    assert "of another model" in refused(capsys, other)


def test_too_short_a_text_leaves_the_default_out_and_refuses_what_was_asked_for(
    home: Path, searched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ("--compensate-samples", "2")
    made, err = printed(capsys, search(home, tmp_path / "run", *few))
    (line,) = [line for line in err.splitlines() if "left out" in line]
    assert line.startswith("warning: start fisher is left out: 62 tokens are too few") and "4 sequences of 32" in line
    assert "warning: no sensitivity table, so units are ranked by wanda: 62 tokens are too few" in err
    assert list(starts(tmp_path / "run")) == ["mlp", "uniform"] and "predicted_rise" not in made
    assert [resolved_settings(run, SearchConfig)["saliency"] for run in (tmp_path / "run", searched)] == [
        "wanda",
        "fisher",
    ]
    assert not (tmp_path / "run" / "sensitivity.safetensors").exists()
    cut = interrupted(tmp_path / "run", tmp_path / "cut", 1)
    _, err = printed(capsys, search(home, cut, *few, "--resume"))
    assert journal(cut) == journal(tmp_path / "run") and "left out" not in err
    out = tmp_path / "refused"
    line = refused(capsys, search(home, out, *few, "--start", "fisher,mlp"))
    assert "62 tokens are too few" in line and "4 sequences of 32" in line
    assert not [path for path in out.rglob("*") if path.is_file() and path.name != ".lock"]


def test_what_the_space_does_not_have_is_left_out(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of half a tiny model attention is too much for MLPs alone to make good for."""
    run = tmp_path / "run"
    argv = search(home, run, "--strategy", "random", "--min-depth", "1", "--start", "mlp,uniform", "--params", "35%")
    _, err = printed(capsys, argv)
    (line,) = [line for line in err.splitlines() if "left out" in line]
    assert line.startswith("warning: start mlp is left out: budget of ") and "attention untouched" in line
    assert list(starts(run)) == ["uniform"]
    assert journal(run)[0]["arch"]["layers"] == starts(run)["uniform"]["layers"]


@pytest.mark.parametrize("family", ["mixtral", "t5"])
def test_fused_experts_and_encoder_decoders_have_tables(home: Path, tmp_path: Path, family: str) -> None:
    run = tmp_path / "run"
    argv = search(home, run, "--start", "fisher", "--samples", "16", "--strategy", "random", model=family)
    assert invoke(argv) == 0
    assert journal(run)[0]["arch"]["layers" if family == "mixtral" else "encoder"]
    assert list(starts(run)) == ["fisher"]
    summary = json.loads((run / "summary.json").read_text())
    assert summary["predicted_rise"] > 0


def test_phi_keeps_its_start(home: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert invoke(search(home, run, "--proxy", "phi", "--rank", "4")) == 0
    assert list(starts(run)) == ["uniform"] and not (run / "sensitivity.safetensors").exists()
    assert journal(run)[1]["arch"]["layers"] == starts(run)["uniform"]["layers"]  # behind the anchor
    summary = json.loads((run / "summary.json").read_text())
    assert not [key for key in summary if "rise" in key]
