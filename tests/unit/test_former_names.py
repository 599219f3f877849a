"""Former names of settings go on being accepted, wherever settings are given; under both names they are refused."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from tracenas import commands
from tracenas import config as configs
from tracenas.cli import COMMANDS, invoke
from tracenas.commands.run.sections import check_run
from tracenas.errors import UserError
from tracenas.pipeline.resume import as_started, resolve_settings
from tracenas.rundir import write_json

FORMER = [
    (name, old, new)
    for name, command in COMMANDS.items()
    for old, new in getattr(configs, command.config).former.items()
    if new in configs.setting_names(getattr(configs, command.config))
]
RUN = {"model": "m", "data": "d", "params": "60%", "out": "o", "text": "t"}
ARGV = ["run", "m", "--data", "d", "--params", "60%", "--out", "o"]


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """The settings that commands were called with; nothing is done."""
    settings: list[Any] = []
    outcome = SimpleNamespace(show=lambda: None, to_json=dict)
    monkeypatch.setattr(
        commands,
        "import_module",
        lambda _: SimpleNamespace(**{"run": lambda s: settings.append(s) or outcome, "search": settings.append}),
    )
    monkeypatch.chdir(tmp_path)
    return settings


@pytest.mark.parametrize(("command", "old", "new"), FORMER)
def test_a_former_name_stands_for_the_setting(command: str, old: str, new: str) -> None:
    kind = getattr(configs, COMMANDS[command].config)
    assert configs.current_names(kind, {old: "x"}) == {new: "x"}
    for values in ({old: "x", new: "y"}, {new: "y", old: "x"}):
        with pytest.raises(
            UserError, match=f"^{new} is given twice, as ({old} and as {new}|{new} and as {old}); leave"
        ):
            configs.current_names(kind, values)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--eval-text", "t"], ("t", None, None)),
        (["eval_text=t", "eval-windows=3"], ("t", 3, None)),
        (["--eval-text", "t", "--eval-windows", "3", "--micro-batch", "2"], ("t", 3, 2)),
        (["--config", "old.yaml"], ("of the file", 7, 5)),
        (["--config", "old.yaml", "--text", "t", "windows=3"], ("t", 3, 5)),
        (["--config", "new.yaml", "--eval-text", "t", "eval_windows=3"], ("t", 3, 5)),
    ],
)
def test_every_way_to_give_a_setting(argv: list[str], expected: tuple[Any, ...], called: list[Any]) -> None:
    Path("old.yaml").write_text(yaml.safe_dump({"eval-text": "of the file", "eval_windows": 7, "micro_batch": 5}))
    Path("new.yaml").write_text(yaml.safe_dump({"text": "of the file", "windows": 7, "batch": 5}))
    assert invoke([*ARGV, *argv]) == 0
    assert (called[0].text, called[0].windows, called[0].batch) == expected


def test_former_names_in_sections(called: list[Any]) -> None:
    stored = {
        "recover": {"method": "pretrain", "max_steps": 1, "eval-windows": 4},
        "eval": {"max_windows": 5, "tasks": "piqa"},
    }
    Path("run.yaml").write_text(yaml.safe_dump({"text": "t", **stored}))
    assert invoke([*ARGV, "--config", "run.yaml", "recover.windows=6", "eval.batch_size=2"]) == 0
    assert called[0].recover == {"method": "pretrain", "max_steps": 1, "windows": 6}
    assert called[0].eval == {"windows": 5, "tasks": "piqa", "task_batch": 2}
    run = configs.build(configs.RunConfig, {**RUN, "recover": {"method": "pretrain", "max_steps": 1, "micro_batch": 4}})
    assert run.recover is not None and run.recover["batch"] == 4


@pytest.mark.parametrize(
    "argv",
    [
        ["--text", "t", "--eval-text", "t"],
        ["--text", "t", "eval_text=t"],
        ["--text", "t", "recover.method=pretrain", "recover.max_steps=1", "recover.batch=1", "recover.micro_batch=1"],
        ["--config", "both.yaml"],
    ],
)
def test_both_names_are_refused_in_a_line(
    argv: list[str], called: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("both.yaml").write_text(yaml.safe_dump({"text": "t", "eval_text": "t"}))
    assert invoke([*ARGV, *argv]) == 2 and not called
    line = capsys.readouterr().err
    assert "is given twice, as " in line and len(line.splitlines()) == 1


def test_only_names_of_now_are_shown_and_suggested(capsys: pytest.CaptureFixture[str]) -> None:
    for command, old, _ in FORMER:
        assert invoke([*command.split(), "--help-all"]) == 0
        assert f"--{old.replace('_', '-')} " not in capsys.readouterr().out, command
    with pytest.raises(UserError, match="unknown setting 'evaltext': did you mean 'text'"):
        configs.build(configs.RunConfig, {**RUN, "evaltext": "t"})


def test_the_settings_of_a_run_begun_before_are_the_same(tmp_path: Path) -> None:
    config = configs.build(configs.RunConfig, {**RUN, "out": tmp_path, "windows": 4, "resume": True})
    stored = {**config.model_dump(mode="json", exclude={"text", "windows", "batch"}), "eval_text": "t"}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**stored, "eval_windows": 4, "micro_batch": 8}))
    assert as_started(tmp_path, config, ("resume", "out")).batch == 8
    resolve_settings(config, tmp_path, {"batch": 8, "threads": 2})
    now = yaml.safe_load(path.read_text())
    assert (now["batch"], now["threads"], now["text"]) == (8, 2, "t") and not {"micro_batch", "eval_text"} & set(now)
    path.write_text(yaml.safe_dump({**stored, "eval_windows": 3}))
    with pytest.raises(UserError, match="another windows: the run has 3, not 4"):
        as_started(tmp_path, config, ("resume", "out"))


def test_the_stages_of_a_run_begun_before_are_the_same(tmp_path: Path) -> None:
    values = {**RUN, "out": tmp_path, "windows": 4, "resume": True, "bench": {"batch": 2}}
    for name in ("pruned.json", "comparison.json", "bench.json"):
        write_json(tmp_path / name, {})
    fit = {"compensate": "none"}
    stages = {
        "prune": fit,
        "comparison": {"eval_text": "t", "eval_windows": 4, "random_architectures": 3, **fit},
        "bench": {"recovered": False, "rivals": False, "batch_size": 2},
    }
    write_json(tmp_path / "stages.json", stages)
    source: Any = SimpleNamespace(require_decoder=lambda _: None)
    check_run(configs.build(configs.RunConfig, {**values, **fit}), source)
    with pytest.raises(UserError, match="another windows: the finished stage has 4, not 5"):
        check_run(configs.build(configs.RunConfig, {**values, **fit, "windows": 5}), source)
