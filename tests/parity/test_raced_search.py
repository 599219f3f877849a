"""Racing on a real super-network: the same choice as the plain scheme, fewer tokens, the same journal when resumed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_model

from tracenas.families import Options, config_family
from tracenas.journal import Journal
from tracenas.models.surgery.ordering import Ordering
from tracenas.models.surgery.supernet import Supernet
from tracenas.proxies import PROXIES
from tracenas.saliency.wanda import saliency
from tracenas.scoring.evaluator import Evaluator, ScoringSettings
from tracenas.scoring.front_bars import FrontBars
from tracenas.scoring.raced import RacingEvaluator
from tracenas.space.constraints import Budget
from tracenas.space.search_space import SearchSpace
from tracenas.strategies import STRATEGIES, SearchSettings, run_search

pytestmark = pytest.mark.parity

SEARCH = SearchSettings(population=8, elites=3, iterations=5, init="uniform", seed=1)


@pytest.fixture(scope="module", params=["loss", "kl"])
def evaluator(request: pytest.FixtureRequest) -> Evaluator:
    model = tiny_model("llama")
    config = json.loads(model.config.to_json_string())
    family = config_family(config)
    blocks = family.blocks(config, Options(channel_quantum=8))
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, config["vocab_size"], (12, 16), generator=generator)
    per_unit, _ = saliency(model, blocks, tokens, 4)
    net = Supernet(model, blocks, Ordering.from_saliency(blocks, per_unit))
    free = SearchSpace(tuple(b.spec for b in blocks), family.outside(config), None, "sublayer")
    limit = int(0.8 * free.parameters(free.base))
    space = SearchSpace(free.layers, free.outside, Budget(limit, 0.05), "sublayer")
    return Evaluator(net, space, tokens, PROXIES.get(request.param), ScoringSettings(micro_batch=4))


def searched(evaluator: Evaluator, path: Path, elites: int | None = SEARCH.elites) -> Any:
    racing = None if elites is None else RacingEvaluator(evaluator, elites)
    strategy = STRATEGIES.get("evolution")(evaluator.space, SEARCH)
    told = None if racing is None else racing.on_generation
    return run_search(strategy, racing or evaluator, Journal(path), on_generation=told)


def timeless(path: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in r.items() if k != "seconds"} for r in Journal(path).read()]


def test_a_candidate_that_is_not_stopped_has_the_plain_score(evaluator: Evaluator) -> None:
    rng = np.random.default_rng(0)
    racing = RacingEvaluator(evaluator, 3)
    for _ in range(5):
        arch = evaluator.space.sample(rng)
        assert arch is not None
        plain, raced = evaluator.score(arch), racing.score(arch)
        assert raced.score == pytest.approx(plain.score, rel=1e-6)
        assert raced.loss == pytest.approx(plain.loss, rel=1e-6)
        assert -np.mean(raced.extra["terms"]) == pytest.approx(raced.score, rel=1e-12)


def test_stopped_candidates_rank_below_every_elite_and_cost_less(evaluator: Evaluator) -> None:
    racing = RacingEvaluator(evaluator, 2)
    better = racing.score(evaluator.space.base)
    records = [{"terms": [v - shift for v in better.extra["terms"]], "score": 0.0} for shift in (1.0, 0.9)]
    racing.on_generation(records, records)
    stopped = racing.score(evaluator.space.base)
    assert stopped.extra["stopped"] == 1
    assert stopped.extra["terms"] == pytest.approx(better.extra["terms"][:1], rel=1e-6)
    assert stopped.loss is None
    assert stopped.score == pytest.approx(better.score, rel=1e-6)  # the shift is the same everywhere
    assert stopped.score < -np.mean(records[-1]["terms"])
    racing.on_generation(records[:1], records)  # no full set of elites: nobody is stopped
    assert "stopped" not in racing.score(evaluator.space.base).extra


def test_on_a_front_only_what_costs_no_more_is_a_bar(evaluator: Evaluator) -> None:
    space = evaluator.space
    racing = RacingEvaluator(evaluator, 2, FrontBars(space, ("params",)))
    better = racing.score(space.base)
    shifted = (
        {"id": str(shift), "score": 0.0, "terms": [v - shift for v in better.extra["terms"]]} for shift in (1.0, 0.9)
    )
    records = [
        {**record, "arch": arch.to_json()} for record, arch in zip(shifted, (space.base, space.base), strict=True)
    ]
    racing.on_generation(records, records)
    stopped = racing.score(space.base)
    assert stopped.extra["stopped"] == 1 and stopped.score == pytest.approx(better.score, rel=1e-6)
    smaller = space.smallest
    assert racing.bar_of(smaller) is None and "stopped" not in racing.score(smaller).extra
    bar = racing.bar_of(space.base)
    racing.take(bar)  # as a worker is given it
    assert racing.bar_of(smaller) is bar


def test_the_choice_is_the_plain_schemes(evaluator: Evaluator, tmp_path: Path) -> None:
    plain = searched(evaluator, tmp_path / "plain.jsonl", None)
    raced = searched(evaluator, tmp_path / "raced.jsonl")
    assert raced.best == plain.best
    assert [r["id"] for r in raced.records] == [r["id"] for r in plain.records]


def test_a_resumed_race_is_the_undisturbed_one(evaluator: Evaluator, tmp_path: Path) -> None:
    searched(evaluator, tmp_path / "whole.jsonl")
    lines = (tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
    for cut in (0, 3, 11, len(lines) - 1):
        path = tmp_path / f"cut-{cut}.jsonl"
        path.write_text("".join(lines[:cut]))
        searched(evaluator, path)
        assert timeless(path) == timeless(tmp_path / "whole.jsonl")


def test_the_base_comes_back_after_a_stop(evaluator: Evaluator) -> None:
    racing = RacingEvaluator(evaluator, 2)
    before = racing.score(evaluator.space.base).score
    records = [{"terms": [-9.0 + shift * i for i in range(12)], "score": 0.0} for shift in (0.0, 1e-3)]
    racing.on_generation(records, records)
    small = evaluator.space.sample(np.random.default_rng(3))
    assert small is not None
    assert "stopped" in racing.score(small).extra
    assert RacingEvaluator(evaluator, 2).score(evaluator.space.base).score == before


def test_a_proxy_that_is_no_mean_cannot_race(evaluator: Evaluator) -> None:
    phi = Evaluator(
        evaluator.net, evaluator.space, evaluator.tokens, PROXIES.get("phi"), ScoringSettings(micro_batch=4)
    )
    with pytest.raises(ValueError, match="not additive"):
        RacingEvaluator(phi, 2)
