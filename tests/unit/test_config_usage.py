"""A setting that was given and is not used is refused, whichever way it was given; and nothing is offered in vain."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click import Context, Option

from tracenas import config as configs
from tracenas.cli import COMMANDS, _command, app, invoke
from tracenas.commands.prune.settings import decoder_only
from tracenas.config.usage import applies
from tracenas.errors import UserError

SEARCH = {"model": "m", "data": "d", "params": "60%", "out": "o"}
STUDY = {"model": "m", "data": "d", "text": "e", "params": "60%", "out": "o"}
RECOVER = {"model": "m", "data": "d", "out": "o", "max_steps": 1}
ONE_SHOT = {"model": "m", "out": "o", "method": "wanda", "params": "50%", "data": "d"}
ARCH = {"model": "m", "out": "o", "arch": "a.json"}
RUN = {**SEARCH, "text": "e"}

IGNORED: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("SearchConfig", {**SEARCH, "proxy": "loss"}, {"rank": "8"}, "traces"),
    ("SearchConfig", {**SEARCH, "proxy": "loss=0.5,kl=0.5"}, {"rank": "8"}, "traces"),
    ("SearchConfig", {**SEARCH, "strategy": "guided"}, {"mutation_width": 0.3}, "strategy evolution"),
    ("SearchConfig", {**SEARCH, "proxy": "kl"}, {"mutation_width": 0.3}, "strategy evolution"),
    ("SearchConfig", {**SEARCH, "strategy": "random"}, {"mutation_width": 0.3}, "strategy evolution"),
    ("SearchConfig", {**SEARCH, "strategy": "random"}, {"sigma": 0.2}, "evolution or guided"),
    ("SearchConfig", {**SEARCH, "strategy": "random"}, {"crossover": 0.2}, "evolution or guided"),
    ("SearchConfig", {**SEARCH, "strategy": "random"}, {"init": "uniform"}, "evolution or guided"),
    ("SearchConfig", {**SEARCH, "strategy": "uniform"}, {"population": 8}, "not uniform"),
    ("SearchConfig", {**SEARCH, "strategy": "uniform"}, {"race": "off"}, "not uniform"),
    ("SearchConfig", {**SEARCH, "init": "uniform"}, {"include_uniform": False}, "another init than uniform"),
    ("SearchConfig", {**SEARCH, "start": "fisher"}, {"include_uniform": True}, "start auto or none"),
    ("SearchConfig", {**SEARCH, "strategy": "uniform"}, {"start": "mlp"}, "not uniform"),
    ("SearchConfig", {**SEARCH, "proxy": "phi"}, {"sensitivity": "s"}, "a start, a saliency or a proxy"),
    ("SearchConfig", {**SEARCH, "proxy": "kl", "start": "mlp"}, {"sensitivity": "s"}, "a start, a saliency or a proxy"),
    ("SearchConfig", {**SEARCH, "proxy": "phi"}, {"ridge": 0.1}, "a refit"),
    ("SearchConfig", {**SEARCH, "proxy": "phi"}, {"prefer": "stock"}, "a mean over sequences"),
    ("SearchConfig", SEARCH, {"run_name": "n"}, "report-to"),
    ("SearchConfig", SEARCH, {"smallest": "40%"}, "need front"),
    ("SearchConfig", SEARCH, {"context": 8}, "a budget of decode_ms, flops, memory, prefill_ms"),
    ("SearchConfig", SEARCH, {"serve_batch": 2}, "a budget of decode_ms, memory, prefill_ms"),
    ("SearchConfig", SEARCH, {"prompt": 8}, "need latency"),
    ("PruneConfig", ONE_SHOT, {"latency": "t.json"}, "a budget of decode_ms, prefill_ms"),
    (
        "PruneConfig",
        {**ONE_SHOT, "budget": "flops=80%"},
        {"outtype": "f16"},
        "a budget of decode_ms, file, kv_cache, memory, prefill_ms",
    ),
    ("PruneConfig", ARCH, {"budget": "flops=80%"}, "method"),
    ("ScoreConfig", {"model": "m", "arch": "a", "data": "d", "proxy": "kl"}, {"rank": "8"}, "traces"),
    ("ScoreConfig", {"model": "m", "arch": "a", "data": "d"}, {"ridge": 0.1}, "a refit"),
    ("PlanConfig", {"model": "m"}, {"tolerance": 0.1}, "params"),
    ("PlanConfig", {"model": "m"}, {"sensitivity": "s"}, "params"),
    ("PlanConfig", {"model": "m", "no_timing": True}, {"threads": 2}, "estimate of time"),
    ("PlanConfig", {"model": "m", "proxy": "loss"}, {"rank": "8"}, "traces"),
    ("PlanConfig", {"model": "m"}, {"windows": 8}, "text"),
    ("PlanConfig", {"model": "m"}, {"recover_rivals": True}, "section recover"),
    ("PruneConfig", ARCH, {"tolerance": 0.1}, "method"),
    ("PruneConfig", ARCH, {"min_depth": 2}, "method"),
    ("PruneConfig", {**ONE_SHOT, "compensate": "none"}, {"ridge": 0.1}, "need --compensate best, ridge or sequential"),
    ("PruneConfig", ONE_SHOT, {"sensitivity": "s"}, "a method whose saliency is fisher"),
    ("PruneConfig", ONE_SHOT, {"reconstruct_steps": 9}, "--reconstruct blocks"),
    ("PruneConfig", ARCH, {"reconstruct_rate": 1e-3}, "--reconstruct blocks"),
    ("PruneConfig", ARCH, {"resume": True}, "--reconstruct blocks"),
    ("PruneConfig", {**ARCH, "compensate": "ridge"}, {"scales": "none"}, "--compensate best"),
    (
        "PruneConfig",
        {**ONE_SHOT, "compensate": "none"},
        {"ridge_scale": "mean"},
        "--compensate best, ridge or sequential",
    ),
    ("ExportConfig", {"model": "m", "out": "o"}, {"threads": 2}, "check"),
    ("ExportConfig", {"model": "m", "out": "o"}, {"check_ids": "1,2"}, "check"),
    ("ExportConfig", {"model": "m", "out": "o", "tokenizer": "none"}, {"pre": "gpt-2"}, "tokenizer auto"),
    ("EvalConfig", {"models": ("m",), "tasks": "piqa"}, {"seq_len": 8}, "text"),
    ("EvalConfig", {"models": ("m",), "text": "t"}, {"limit": 8}, "tasks"),
    ("EvalConfig", {"models": ("m",), "text": "t"}, {"task_batch": 4}, "tasks"),
    ("EvalConfig", {"models": ("m",), "tasks": "piqa:5,arc_easy:1"}, {"shots": 2}, "names no number"),
    ("SparsifyConfig", {"model": "m", "sparsity": "0.5", "out": "o"}, {"samples": 8}, "data"),
    ("SparsifyConfig", {"model": "m", "sparsity": "0.5", "out": "o", "data": "d"}, {"population": 8}, "ratios search"),
    ("SparsifyConfig", {"model": "m", "sparsity": "0.5", "out": "o", "data": "d"}, {"resume": True}, "ratios search"),
    (
        "SparsifyConfig",
        {"model": "m", "sparsity": "0.5", "out": "o", "data": "d", "ratios": "search", "proxy": "num_params"},
        {"rank": "8"},
        "traces",
    ),
    ("SparsifyConfig", {"model": "m", "sparsity": "0.5", "out": "o", "ratios": "owl"}, {"spread": 0.1}, "a file"),
    ("RecoverConfig", {**RECOVER, "method": "pretrain"}, {"temperature": 2.0}, "distill"),
    ("RecoverConfig", {**RECOVER, "method": "distill"}, {"lora_rank": 4}, "method lora"),
    ("RecoverConfig", {**RECOVER, "method": "lora"}, {"text_field": "t"}, "text"),
    ("RecoverConfig", {**RECOVER, "method": "pretrain"}, {"run_name": "n"}, "report-to"),
    ("RecoverConfig", {**RECOVER, "method": "pretrain", "decay": 0.0}, {"decay_form": "cosine"}, "a decay"),
    ("StudyConfig", {**STUDY, "targets": "supernet_lora"}, {"steps": 5}, "targets recovery"),
    ("StudyConfig", {**STUDY, "steps": 0}, {"recover_batch": 2}, "steps or targets"),
    ("StudyConfig", {**STUDY, "proxies": "loss,kl", "starts": "plain"}, {"rank": "8"}, "traces"),
    ("StudyConfig", {**STUDY, "proxies": "loss,kl", "starts": "plain"}, {"ridge": 0.1}, "a refit"),
    ("StudyConfig", STUDY, {"lora_steps": 5}, "supernet_lora"),
    ("StudyConfig", {**STUDY, "steps": 0}, {"learning_rate": 0.1}, "steps"),
    ("StudyConfig", STUDY, {"limit": 5}, "tasks"),
    ("StudyConfig", STUDY, {"sizes": "40%-90%"}, "across-sizes"),
    ("AblationConfig", {**SEARCH, "proxy": "loss"}, {"ranks": "2,8"}, "traces"),
    ("AblationConfig", {"model": "m", "data": "d", "out": "o", "study": "s"}, {"architectures": 8}, "study"),
    ("DemoConfig", {}, {"minutes": 5.0}, "smollm2"),
    ("RunConfig", RUN, {"checkpoints": "60%"}, "needs front"),
    ("RunConfig", {**RUN, "front": True, "checkpoints": "60%"}, {"random_architectures": 2}, "without front"),
    ("BenchConfig", {"models": ("m",)}, {"outtype": "f16"}, "need backend llama.cpp"),
    ("BenchConfig", {"models": ("m",), "backend": "llama.cpp"}, {"dtype": "bf16"}, "need backend torch"),
    ("BenchConfig", {"models": ("m",), "backend": "llama.cpp"}, {"cache": "static"}, "needs backend torch"),
    ("BenchConfig", {"models": ("m",)}, {"vllm_python": "python"}, "need backend vllm"),
    ("BenchConfig", {"models": ("m",), "backend": "vllm"}, {"no_memory": True}, "another backend than vllm"),
    ("MeasureConfig", {"model": "m", "out": "t.json"}, {"outtype": "f16"}, "need backend llama.cpp"),
    ("MeasureConfig", {"model": "m", "out": "t.json", "backend": "vllm"}, {"outtype": "f16"}, "need backend llama.cpp"),
    ("MeasureConfig", {"model": "m", "out": "t.json"}, {"enforce_eager": True}, "need backend vllm"),
    ("MeasureConfig", {"model": "m", "out": "t.json"}, {"vllm_python": "python"}, "need backend vllm"),
    (
        "MeasureConfig",
        {"model": "m", "out": "t.json", "backend": "llama.cpp"},
        {"dtype": "bf16"},
        "need backend torch, torch-compile or vllm",
    ),
    ("RunConfig", {**RUN, "compensate": "none"}, {"prune": {"ridge": 0.1}}, "prune: ridge"),
    ("RunConfig", RUN, {"recover": {"method": "pretrain", "max_steps": 1, "top_k": 5}}, "recover: top-k"),
]


@pytest.mark.parametrize(("kind", "base", "ignored", "why"), IGNORED)
def test_what_would_be_ignored_is_refused(kind: str, base: dict[str, Any], ignored: dict[str, Any], why: str) -> None:
    built = configs.build(getattr(configs, kind), base)
    (name,) = ignored
    with pytest.raises(UserError, match=rf"{why}|{name.replace('_', '-')} is not used here.*{why}"):
        configs.build(type(built), {**base, **ignored})


def test_every_entry_of_the_tables_has_a_case_of_its_own() -> None:
    covered = {(kind, name) for kind, _, ignored, _ in IGNORED for name in ignored}
    for kind in {command.config for command in COMMANDS.values()}:
        for use in getattr(configs, kind).__dict__.get("uses", ()):
            assert any((kind, name) in covered for name in use.settings), (kind, use.settings)
            assert set(use.settings) <= set(configs.setting_names(getattr(configs, kind)))


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("SearchConfig", {**SEARCH, "proxy": "phi", "rank": "8", "mutation_width": 0.3}),
        ("SearchConfig", {**SEARCH, "rank": "8", "ridge": 0.1}),  # `auto` depends on the model
        ("SearchConfig", {**SEARCH, "proxy": "loss=0.5,phi=0.5", "rank": "8", "init": "nirvana", "strategy": "random"}),
        ("SearchConfig", {**SEARCH, "proxy": "phi", "saliency": "obs", "compensate_samples": 4}),
        ("SearchConfig", {**SEARCH, "proxy": "phi", "compensate_samples": 4}),  # held-out text is taken beside it
        ("SearchConfig", {**SEARCH, "proxy": "phi", "start": "fisher", "sensitivity": "s"}),
        ("SearchConfig", {**SEARCH, "start": "none", "saliency": "fisher", "sensitivity": "s"}),
        ("RunConfig", {**RUN, "proxy": "phi", "compensate_samples": 4, "ridge": 0.1}),
        ("RunConfig", {**RUN, "eval": {"windows": 5}, "recover": {"method": "lora", "data": "d", "max_steps": 1}}),
        ("StudyConfig", {**STUDY, "proxies": "loss", "ridge": 0.1}),
        ("SparsifyConfig", {"model": "m", "sparsity": "0.5", "out": "o", "resume": False}),
        ("SearchConfig", {**SEARCH, "proxy": "kl", "resume": False, "ridge": None}),
    ],
)
def test_what_is_used_is_accepted(kind: str, values: dict[str, Any]) -> None:
    configs.build(getattr(configs, kind), values)


def test_defaults_of_a_file_ask_for_nothing_and_others_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "search.yaml"
    values = {**SEARCH, "model": str(tmp_path / "none"), "rank": 64, "mutation_width": 0.2}
    for extra, expected in (
        ([], "none"),  # the model that is not there: the settings were accepted
        (["--rank", "64"], "rank is not used here"),
        (["rank=64"], "rank is not used here"),
        (["--mutation-width", "0.2"], "mutation-width is not used here"),
    ):
        file.write_text(yaml.safe_dump(values))
        assert invoke(["search", "--config", str(file), "proxy=kl", *extra]) == 2
        assert expected in capsys.readouterr().err
    file.write_text(yaml.safe_dump({**values, "rank": 32}))
    assert invoke(["search", "--config", str(file), "proxy=kl"]) == 2
    assert "rank is not used here" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_boolean_option_can_be_switched_on_and_off(name: str) -> None:
    command = COMMANDS[name]
    kind = getattr(configs, command.config)
    options = {param.name: param for param in _command(name, command).params}
    for field in configs.setting_names(kind):
        if kind.model_fields[field].annotation not in (bool, bool | None):
            continue
        option = options[field]
        assert len(option.opts) == len(option.secondary_opts) == 1
        for flag, value in ((option.opts[0], True), (option.secondary_opts[0], False)):
            with Context(app) as parent:
                leaf = _command(name, command)
                assert leaf.make_context(name, [flag], parent).params[field] is value


@pytest.mark.parametrize(
    ("argv", "option"),
    [
        *((["report", "RUN"], f"--{name}") for name in ("seed", "device", "dtype", "threads")),
        *((["metric", "show", "abs(W)"], f"--{name}") for name in ("seed", "device", "dtype", "threads")),
        *((["export", "DIR", "--out", "o"], f"--{name}") for name in ("seed", "device", "dtype")),
        (["eval", "DIR", "--text", "t"], "--seed"),
    ],
)
def test_options_that_nothing_reads_are_gone(argv: list[str], option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke([*argv, option, "1"]) == 2
    assert re.search(f"No such option:? '?{option}'?", capsys.readouterr().err)  # click 8.1 has no quotes
    assert invoke([*argv, f"{option[2:]}=1"]) == 2
    assert f"unknown setting '{option[2:]}'" in capsys.readouterr().err


def test_recover_takes_no_numbered_device(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["recover", "DIR", "--method", "pretrain", "--data", "d", "--out", "o", "--max-steps", "1"]
    assert invoke([*argv, "--device", "cuda:1"]) == 2
    assert "device 'cuda:1': accepted: auto, cpu, cuda" in capsys.readouterr().err
    option = next(p for p in _command("recover", COMMANDS["recover"]).params if p.name == "device")
    assert isinstance(option, Option) and "cuda:N" not in str(option.help)


@pytest.mark.parametrize(
    ("name", "read"), [("a.jsonl", True), ("a.csv.gz", True), ("a.txt", False), ("a.txt.gz", False), ("a.md", False)]
)
def test_a_field_is_for_text_in_rows(name: str, read: bool, tmp_path: Path) -> None:
    file = tmp_path / name
    file.touch()
    for kind, values in (
        ("SearchConfig", {**SEARCH, "data": str(file)}),
        ("EvalConfig", {"models": ("m",), "text": str(file)}),
        ("SparsifyConfig", {"model": "m", "sparsity": "0.5", "out": "o", "data": str(file)}),
        ("StudyConfig", {**STUDY, "data": str(file), "text": str(file)}),
    ):
        if read:
            configs.build(getattr(configs, kind), {**values, "text_field": "body"})
        else:
            with pytest.raises(UserError, match="text-field is not used here: text-field needs text in rows"):
                configs.build(getattr(configs, kind), {**values, "text_field": "body"})
    configs.build(configs.StudyConfig, {**STUDY, "data": str(tmp_path / "more.jsonl"), "text_field": "body"})


def test_conditions_are_inherited() -> None:
    assert set(applies(configs.SearchConfig)) <= set(applies(configs.RunConfig))


@pytest.mark.parametrize(
    ("settings", "feature"),
    [
        ({}, ""),
        ({"compensate": "auto"}, ""),
        ({"compensate": "sequential"}, "--compensate sequential"),
        ({"ridge": 0.1}, "ridge, compensate-samples"),
        ({"compensate_samples": 8}, "ridge, compensate-samples"),
        ({"reconstruct": "blocks"}, "--reconstruct blocks"),
        ({"stub_removed_attention": True}, "--stub-removed-attention"),
    ],
)
def test_what_only_decoders_can_have_is_named(settings: dict[str, Any], feature: str) -> None:
    assert decoder_only(configs.PruneConfig(model="m", arch=Path("a.json"), out=Path("o"), **settings)) == feature
