import json
from pathlib import Path

import pytest
import yaml

from tracenas.cli import invoke
from tracenas.commands.recover.checks import parse_tokens
from tracenas.commands.run.sections import recover_config, recovery_processes
from tracenas.config import RecoverConfig, RunConfig, build
from tracenas.config.effort import EFFORTS
from tracenas.data.sources import parse_source
from tracenas.demo import model_path
from tracenas.recipes import recipe, recipes

ALL = sorted((Path(__file__).parents[2] / "src/tracenas/recipes").glob("*.yaml"))
RECOMMENDED = [one.path for one in recipes() if one.kind == "recommended"]
RECIPES = [path for path in ALL if not path.stem.startswith("recover-") and path not in RECOMMENDED]
RECOVERY = [path for path in ALL if path.stem.startswith("recover-")]

# TraceNAS, Table 5 (left), §4.1 and §4.2.
PUBLISHED = {
    "data": "fineweb-edu",
    "samples": 16,
    "rank": 64,
    "population": 30,
    "elites": 10,
    "iterations": 50,
    "crossover": 0.7,
    "mutation_depth": 0.2,
    "mutation_width": 0.2,
    "init": "importance",
    "seed": 0,
    "proxy": "phi",
    "dtype": "bf16",
    "text": "wikitext2",
}


def test_there_is_one_per_published_model() -> None:
    assert len(RECIPES) == 6


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_settings_are_the_published_ones(path: Path) -> None:
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    further = {"compensate", "recover", "eval", "bench"} - ({"bench"} if "70b" in path.stem else set())
    assert set(recipe) == set(PUBLISHED) | {"model", "params", "out", "seq_len"} | further
    assert {key: recipe[key] for key in PUBLISHED} == PUBLISHED
    assert recipe["seq_len"] == (2048 if "pythia" in path.stem else 4096)
    assert path.stem.endswith(recipe["params"].lower()) and recipe["out"] == f"runs/{path.stem}"
    parse_source(recipe["data"])
    settings = build(RunConfig, recipe)
    assert (settings.trace_rank, settings.params) == (64, recipe["params"])
    assert settings.starts == ("uniform",)  # no table


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recovery_of_a_run_is_the_published_one(path: Path) -> None:
    """TraceNAS Table 5 (right) and Appendix D.2: tokens, batch, peak, WSD; no compensation."""
    settings = build(RunConfig, yaml.safe_load(path.read_text(encoding="utf-8")))
    made = recover_config(settings, "pruned", Path("recovered"))
    assert (settings.compensate, settings.eval) == ("auto", {"suite": "paper"})
    if "70b" in path.stem:
        assert (made.method, made.data, made.max_steps) == ("lora", "Open-Orca/OpenOrca", 5000)
        return
    billions = 20e9 if path.stem.startswith(("llama", "qwen")) else 10e9
    length = {"llama-3.1-8b-4.6b": 8192, "pythia-2.8b-1.4b": 2048}.get(path.stem, 4096)
    assert (made.method, made.data, made.seq_len, made.global_batch) == ("pretrain", "fineweb-edu", length, 1024)
    assert 0 <= made.max_steps * 1024 * length - billions < 1024 * length
    assert (made.learning_rate, made.warmup, made.decay, made.decay_form) == (1e-4, 0.05, 0.30, "linear")
    assert made.dtype == "bf16" and made.fsdp and made.global_batch % recovery_processes(settings) == 0
    assert settings.bench == {"new_tokens": 128, "trials": 20}


@pytest.mark.parametrize("path", RECOVERY, ids=lambda path: path.stem)
def test_a_recovery_alone_is_that_of_the_run(path: Path) -> None:
    alone = yaml.safe_load(path.read_text(encoding="utf-8"))
    run = next(p for p in RECIPES if p.stem == Path(alone["model"]).parent.name)
    if "nirvana" not in path.stem:
        composed = {"seed": 0, "text": "wikitext2", **yaml.safe_load(run.read_text(encoding="utf-8"))["recover"]}
        assert composed.pop("processes", 8) == 8
        assert composed == {"text": "wikitext2", **{k: v for k, v in alone.items() if k not in ("model", "out")}}


@pytest.mark.parametrize("path", RECOVERY, ids=lambda path: path.stem)
def test_recovery_settings_are_the_published_ones(path: Path) -> None:
    """TraceNAS Table 5 (right): 20B tokens, batch 1,024, 1e-4, WSD; NIRVANA's LoRA."""
    recipe = build(RecoverConfig, yaml.safe_load(path.read_text(encoding="utf-8")))
    source = Path(recipe.model).parent.name
    assert source in {other.stem for other in RECIPES} and Path(recipe.out).parent.name == source
    assert recipe.learning_rate == 1e-4
    parse_source(recipe.data)
    if recipe.method == "pretrain":
        assert recipe.seq_len == (8192 if "4.6b" in path.stem else 4096)
        tokens = recipe.max_steps * recipe.global_batch * recipe.seq_len
        assert recipe.global_batch == 1024 and 0 <= tokens - 20e9 < recipe.global_batch * recipe.seq_len
        assert (recipe.warmup, recipe.decay) == (0.05, 0.30)
    else:
        assert (recipe.lora_rank, recipe.lora_alpha, recipe.global_batch, recipe.seq_len) == (8, 16, 16, 2048)


@pytest.mark.parametrize("path", RECOMMENDED, ids=lambda path: path.stem)
def test_recommended_ones_are_the_defaults_and_a_recovery_in_tokens(path: Path) -> None:
    """Nothing of the search is told but the model, the budget and the text."""
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert set(given) - {"dtype"} == {"model", "params", "out", "data", "text", "recover", "bench"}
    assert path.stem.endswith(given["params"].rstrip("%")) and given["out"] == f"runs/{path.stem}"
    settings = build(RunConfig, given)
    made = recover_config(settings, "pruned", Path("recovered"))
    assert (made.method, settings.compensate, settings.proxy) == ("distill", "best", "auto")
    assert settings.size == EFFORTS["normal"]
    assert made.tokens is not None and parse_tokens(made.tokens) >= 1_000_000 and made.max_steps is None


def test_recipes_are_listed_with_what_they_need(capsys: pytest.CaptureFixture[str]) -> None:
    assert {one.path for one in recipes()} == set(ALL) and len(RECOMMENDED) == 6
    assert all(one.title.endswith(".") and one.hardware for one in recipes())
    assert recipe("qwen3-8b-75").command == "tracenas run --recipe qwen3-8b-75"
    assert all(one.command.endswith(f"--recipe {one.name}") for one in recipes())
    assert invoke(["recipes"]) == 0
    shown = capsys.readouterr().out
    assert all(one.name in shown for one in recipes())
    assert shown.index("qwen3-8b-75") < shown.index("llama-2-7b-2.7b")
    assert invoke(["recipes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["kind"] == "recommended"


def test_a_recipe_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line replaces its settings; an unknown one, or a file beside it, is refused."""
    monkeypatch.chdir(tmp_path)
    plan = ["plan", "--recipe", "smollm2-135m-75", "--no-timing", "--json", f"model={model_path()}"]
    assert invoke(plan) == 0
    assert json.loads(capsys.readouterr().out)["budget"]["limit"] == int(0.75 * 2_869_920)
    assert invoke(["run", "--recipe", "smollm2-135m-57"]) == 2
    assert "no recipe 'smollm2-135m-57': did you mean 'smollm2-135m-75'?" in capsys.readouterr().err
    assert invoke([*plan, "--config", "other.yaml"]) == 2
    assert "recipe smollm2-135m-75 and config other.yaml: both are settings files" in capsys.readouterr().err
