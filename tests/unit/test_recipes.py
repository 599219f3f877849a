from pathlib import Path

import pytest
import yaml

from tracenas.data.sources import parse_source

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))

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
