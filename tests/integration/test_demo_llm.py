"""`tracenas demo` on a published model, with a tiny one in its place: GGUF in, everything out, resumable."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tiny_gguf import gguf_model, save_gguf

from tracenas.cli import invoke
from tracenas.commands.demo import published as stage
from tracenas.commands.demo.estimate import Amounts, Pieces, amounts_within, estimate
from tracenas.commands.demo.published import LlmDemo, demo_llm
from tracenas.config import DemoConfig
from tracenas.demo import fetch
from tracenas.errors import UserError

pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, LlmDemo, int]:
    """Model, run directory, result, and sessions: the first one is cut off after the search and its stages."""
    home = tmp_path_factory.mktemp("demo")
    model = save_gguf(home / "tiny.gguf", gguf_model(), kind="Q8_0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        config = DemoConfig(model="smollm2", out=home / "out", params="80%", minutes=0.01, threads=1)
        patch.setattr(stage, "_answers", _cut_off)
        with pytest.raises(KeyboardInterrupt):
            demo_llm(config, model)
        with pytest.raises(UserError, match="holds a demo; go on with --resume"):
            demo_llm(config, model)
        patch.undo()
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        patch.setattr(stage, "_planned", _never_measured(stage._planned))
        result = demo_llm(config.model_copy(update={"resume": True}), model)
    return model, home / "out", result, 2


def _cut_off(*_: Any) -> None:
    raise KeyboardInterrupt


def _never_measured(planned: Any) -> Any:
    def resumed(config: DemoConfig, model: Path, out: Path) -> Any:
        assert (out / "demo.json").is_file()
        return planned(config, model, out)

    return resumed


@pytest.mark.slow
def test_all_models_are_measured_before_and_after_the_same_recovery(made: Any) -> None:
    _, _, result, sessions = made
    assert [r["name"] for r in result.perplexity] == ["base", "uniform", "random 1", "found"]
    assert result.perplexity[0]["after"] is None
    assert all(r["after"] is not None and r["after"] != r["before"] for r in result.perplexity[1:])
    assert all(set(answer) == {"prompt", "base", "pruned", "recovered"} for answer in result.answers)
    sizes = [r["params"] for r in result.perplexity]
    assert len(set(sizes[1:])) <= 3 and max(sizes[1:]) <= 0.8 * sizes[0]
    assert result.plan["sessions"] == sessions


@pytest.mark.slow
def test_the_card_says_that_the_weights_are_dequantised(made: Any) -> None:
    _, out, _, _ = made
    for path in (out / "run" / "pruned", out / "run" / "recovered"):
        card = (path / "README.md").read_text(encoding="utf-8")
        assert "dequantised to bfloat16" in card and "Q8_0" in card
        assert "license: apache-2.0" in card
        assert (path / "chat_template.jinja").is_file()
        assert json.loads((path / "generation_config.json").read_text())["eos_token_id"] == 0
        assert json.loads((path / "config.json").read_text())["dtype"] == "bfloat16"
    assert "dequantised" in json.loads((out / "run" / "summary.json").read_text())["weights"]


@pytest.mark.slow
def test_estimate_and_time_taken_are_in_the_summary_and_the_report(made: Any) -> None:
    _, out, result, _ = made
    told = json.loads((out / "run" / "summary.json").read_text())["demo"]
    assert set(told["estimate_seconds"]) and set(told["actual_seconds"]) == {"run", "answers"}
    page = result.report.read_text(encoding="utf-8")
    assert result.report == out / "report.html"
    for answer in result.answers:
        assert answer["prompt"] in page
    assert 'id="published-model"' in page and 'href="#published-model"' in page
    assert not re.search(r"https?://(?!www\.w3\.org)", page)


@pytest.mark.slow
def test_other_settings_than_the_demos_are_refused(made: Any) -> None:
    model, out, _, _ = made
    with pytest.raises(UserError, match="--resume with another params"):
        demo_llm(DemoConfig(model="smollm2", out=out, params="70%", resume=True), model)


@pytest.mark.slow
def test_a_demo_is_gone_on_with_by_its_directory(
    made: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out, _, _ = made
    monkeypatch.setattr(fetch, "fetch", lambda: model)
    monkeypatch.setenv("TRACENAS_LOG", "info")
    page = (out / "report.html").read_text(encoding="utf-8")
    (out / "report.html").unlink()
    assert invoke(["resume", str(out)]) == 0
    assert f"{out} is finished; made again: report.html" in capsys.readouterr().err
    assert (out / "report.html").read_text(encoding="utf-8") == page
    assert invoke(["runs", str(out), "--json"]) == 0
    states = [(run["command"], run["state"]) for run in json.loads(capsys.readouterr().out)["runs"]]
    assert sorted(states) == [("demo", "finished"), ("run", "finished")]


def test_the_plan_fits_into_the_time_and_does_less_where_it_must() -> None:
    pieces = Pieces(load=2, forward=1, candidate=0.8, refit=1, gram=1.3, factor=4, step=3, token=0.1, table=60)
    whole = sum(estimate(pieces, Amounts(), 1).values())
    assert amounts_within(pieces, whole + 1, 1)[0] == Amounts()
    for share in (0.9, 0.6):
        amounts, told = amounts_within(pieces, share * whole, 1)
        assert 0.7 * share * whole < sum(told.values()) <= share * whole
        assert 20 <= amounts.evaluations < Amounts().evaluations
    least, told = amounts_within(pieces, 1.0, 1)
    assert (least.evaluations, least.steps) == (20, 4) and sum(told.values()) > 1.0


def test_gguf_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = save_gguf(tmp_path / "tiny.gguf", gguf_model(), kind="Q8_0")
    assert invoke(["plan", str(path), "--params", "80%", "--no-timing", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert not (tmp_path / "cache").exists()
    text = tmp_path / "text.txt"
    text.write_text("A quick brown fox jumps over the lazy dog. " * 100, encoding="utf-8")
    assert invoke(["eval", str(path), "--text", str(text), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["params"] == planned["feasible"]["base"]
    path.write_bytes(path.read_bytes()[:-100])
    assert invoke(["eval", str(path), "--text", str(text)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
