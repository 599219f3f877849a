from pathlib import Path

import pytest
import yaml

from tracenas.config import RecoverConfig, RunConfig, build
from tracenas.data.sources import parse_source

ALL = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
RECIPES = [path for path in ALL if not path.stem.startswith("recover-")]
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
    "eval_text": "wikitext2",
}


def test_there_is_one_per_published_model() -> None:
    assert len(RECIPES) == 6


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_settings_are_the_published_ones(path: Path) -> None:
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert set(recipe) == set(PUBLISHED) | {"model", "params", "out", "seq_len"}
    assert {key: recipe[key] for key in PUBLISHED} == PUBLISHED
    assert recipe["seq_len"] == (2048 if "pythia" in path.stem else 4096)
    assert path.stem.endswith(recipe["params"].lower()) and recipe["out"] == f"runs/{path.stem}"
    parse_source(recipe["data"])
    settings = build(RunConfig, recipe)
    assert (settings.trace_rank, settings.params) == (64, recipe["params"])


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
