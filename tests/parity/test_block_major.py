"""A generation block by block: the same scores as candidate by candidate, in every bit, with fewer passes of blocks."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from proxy_setting import ProxySetting
from torch import Tensor

from tracenas.commands.search.workers import scored_by
from tracenas.config import SearchConfig
from tracenas.families import Projection, SubBlock
from tracenas.models.surgery.ordering import Key
from tracenas.models.surgery.supernet import Realisation, Supernet
from tracenas.proxies import PROXIES
from tracenas.scoring.block_major import BlockMajorScorer, runs_by_blocks
from tracenas.scoring.block_pass import shared_passes
from tracenas.scoring.evaluator import Evaluator, ScoringSettings
from tracenas.scoring.raced import RacingEvaluator
from tracenas.scoring.racing import Bar
from tracenas.space.architecture import Architecture
from tracenas.strategies.score import Score

pytestmark = pytest.mark.parity

SEQUENCES, LENGTH, MICRO_BATCH = 7, 24, 2
SETTINGS = ScoringSettings(micro_batch=MICRO_BATCH)


MORE = [pytest.param(family, marks=pytest.mark.slow) for family in ("gemma2", "gpt_neox", "qwen3")]


@pytest.fixture(scope="module", params=["llama", "mixtral", *MORE])
def setting(request: pytest.FixtureRequest) -> ProxySetting:
    return ProxySetting(request.param, sequences=SEQUENCES, length=LENGTH)


@pytest.fixture(scope="module")
def llama() -> ProxySetting:
    return ProxySetting("llama", sequences=SEQUENCES, length=LENGTH)


def elsewhere(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """As mapped files have it: a copy."""
    return tensor.to(dtype or tensor.dtype, copy=True)


def generation(setting: ProxySetting) -> list[Architecture]:
    """Skipped blocks, bypassed sub-blocks, random candidates, and such as differ from one in the last blocks alone."""
    drawn = setting.architectures(5)
    layers = drawn[2].layers
    siblings = [Architecture((*layers[:at], *drawn[other].layers[at:])) for at, other in ((3, 3), (3, 4), (2, 1))]
    return [*drawn, *siblings]


def told(scores: Iterator[Score] | Sequence[Score]) -> list[Any]:
    """All that a journal has of scores, but their times."""
    return [(s.score, s.loss, dict(s.extra), s.reason) for s in scores]


def raced(evaluator: Evaluator, candidates: Sequence[Architecture]) -> RacingEvaluator:
    """With a bar that stops half of the candidates at the first look."""
    racing = RacingEvaluator(evaluator, 2)
    first = sorted(score.extra["terms"][0] for score in racing(candidates))
    racing.take(Bar((first[len(first) // 2], *[100.0] * (SEQUENCES - 1)), 1e-12))
    return racing


@pytest.mark.parametrize("proxy", ["loss", "loss_compensated", "kl"])
@pytest.mark.parametrize("waiting", [None, 5 * 2 * MICRO_BATCH * LENGTH * 32 * 4, 1], ids=["all", "five", "one"])
def test_scores_are_those_of_one_by_one(setting: ProxySetting, proxy: str, waiting: int | None) -> None:
    evaluator, candidates = setting.evaluator(proxy, SETTINGS), generation(setting)
    racing = raced(evaluator, candidates)
    for scorer in (evaluator, RacingEvaluator(evaluator, 2), racing):
        alone = told(scorer(candidates))
        together = list(BlockMajorScorer(scorer, elsewhere, waiting=waiting)(candidates))
        assert told(together) == alone
        assert all(s.seconds is not None and s.seconds > 0 for s in together)
    stopped = [s.extra["stopped"] for s in together if "stopped" in s.extra]
    assert 0 < len(stopped) < len(candidates) and set(stopped) == {1}


def test_what_the_realisation_has_outside_the_blocks_counts(llama: ProxySetting) -> None:
    class Scaled(Realisation):
        def outside(self) -> Mapping[str, Tensor]:
            return {"model.norm.weight": 0.5 * llama.net.model.model.norm.weight}

    plain = llama.evaluator("loss", SETTINGS)
    scaled = evaluator_of(llama, Scaled())
    candidates = generation(llama)
    assert told(BlockMajorScorer(scaled, elsewhere)(candidates)) == told(scaled(candidates)) != told(plain(candidates))


def evaluator_of(setting: ProxySetting, how: Realisation) -> Evaluator:
    return Evaluator(setting.net, setting.space, setting.tokens, PROXIES.get("loss"), SETTINGS, how)


@contextmanager
def counted(net: Supernet) -> Iterator[Counter[int]]:
    """How often every block is run."""
    runs: Counter[int] = Counter()
    modules = [net.model.get_submodule(block.path) for block in net.blocks]
    hooks = [m.register_forward_hook(lambda *_, i=i: runs.update([i])) for i, m in enumerate(modules)]
    try:
        yield runs
    finally:
        for hook in hooks:
            hook.remove()


def test_equal_prefixes_run_once(llama: ProxySetting) -> None:
    base = llama.space.base
    ends = {arch.layers[3] for arch in llama.architectures(12)[2:] if not arch.layers[3].skip}
    candidates = [Architecture((*base.layers[:3], end)) for end in sorted(ends, key=str)[:4]]
    scorer = BlockMajorScorer(llama.evaluator("loss", SETTINGS))
    passes = -(-SEQUENCES // MICRO_BATCH)
    with counted(llama.net) as runs:
        list(scorer(candidates))
    assert runs == {0: passes, 1: passes, 2: passes, 3: 4 * passes}
    assert shared_passes(candidates) == (7, 16)


def test_what_shares_next_to_nothing_goes_one_by_one(llama: ProxySetting, caplog: pytest.LogCaptureFixture) -> None:
    candidates = llama.architectures(6)[2:]
    scorer = BlockMajorScorer(llama.evaluator("loss", SETTINGS))
    with caplog.at_level("DEBUG", "tracenas"):
        scores = scorer(candidates)
        next(scores)
        with counted(llama.net) as runs:
            next(scores)
    assert max(runs.values()) == -(-SEQUENCES // MICRO_BATCH)  # the third has not been begun
    runs_apart, alone = shared_passes(candidates)
    assert caplog.messages == [f"4 candidates one by one: {runs_apart} of {alone} passes of blocks differ"]
    assert runs_apart > 0.8 * alone


def test_every_pass_over_the_blocks_is_shown(llama: ProxySetting) -> None:
    candidates = generation(llama)
    told: list[tuple[int, int]] = []

    @contextmanager
    def shown(count: int) -> Iterator[Callable[[int, int], None]]:
        told.append((count, 0))
        yield lambda done, total: told.append((done, total))

    list(BlockMajorScorer(llama.evaluator("loss", SETTINGS), elsewhere, shown=shown)(candidates))
    blocks = len(llama.net.blocks)
    assert told == [(len(candidates), 0), *((done, blocks) for done in range(1, blocks + 1))]


@pytest.mark.parametrize("minutes", [None, 5.0])
def test_where_time_ends_a_search_candidates_go_one_after_the_other(
    llama: ProxySetting, minutes: float | None, tmp_path: Path
) -> None:
    evaluator, candidates = llama.evaluator("loss", SETTINGS), generation(llama)
    session: Any = SimpleNamespace(loaded=SimpleNamespace(keep=elsewhere))
    config = SearchConfig(model="m", data="d", params="60%", out=tmp_path, minutes=minutes)
    with scored_by(evaluator, config, session, None) as scorer:
        scores = iter(scorer(candidates))
        with counted(llama.net) as runs:
            first = next(scores)
        assert told([first, *scores]) == told(evaluator(candidates))
    one = {-(-SEQUENCES // MICRO_BATCH)}
    assert set(runs.values()) == one if minutes else max(runs.values()) > min(one)


@pytest.mark.parametrize("bar", [None, Bar((100.0,) * SEQUENCES, 1.0)], ids=["free", "raced"])
def test_a_block_is_realised_once_per_layer_and_look(llama: ProxySetting, bar: Bar | None) -> None:
    realised: Counter[tuple[Key, int]] = Counter()

    class Counting(Realisation):
        def weight(self, net: Supernet, key: Key, sub: SubBlock, projection: Projection, kept: int) -> Tensor:
            realised.update([(key, kept)] if projection.path == sub.output else [])
            return super().weight(net, key, sub, projection, kept)

    base = llama.space.base
    other = next(a.layers[0] for a in llama.architectures(9) if a.layers[0]["heads"] not in (0, 4))
    candidates = [base, *(Architecture((other, *base.layers[1:at], other, *base.layers[at + 1 :])) for at in (1, 2, 3))]
    racing = RacingEvaluator(evaluator_of(llama, Counting()), 2)
    racing.take(bar)
    list(BlockMajorScorer(racing, elsewhere)(candidates))
    visits = 1 if bar is None else len(racing.pieces)
    assert realised[(0, "attention"), 4] == realised[(0, "attention"), other["heads"]] == visits
    assert bar is None or visits > 3


def test_who_fails_fails_alone(llama: ProxySetting) -> None:
    candidates = generation(llama)[:5]
    at_fault = {s.spec.name: candidates[3].layers[1][s.spec.unit] for s in llama.blocks[1].sub_blocks}
    assert sum(c.layers[1] == candidates[3].layers[1] for c in candidates) < len(candidates)

    class Failing(Realisation):
        trouble: Callable[[Tensor], Tensor]

        def weight(self, net: Supernet, key: Key, sub: SubBlock, projection: Projection, kept: int) -> Tensor:
            weight = super().weight(net, key, sub, projection, kept)
            if key[0] == 1 and at_fault[key[1]] == kept:
                return self.trouble(weight)
            return weight

    def out_of_memory(_: Tensor) -> Tensor:
        raise RuntimeError("can't allocate memory")

    how = Failing()
    for trouble, said in ((out_of_memory, "can't allocate memory"), (lambda w: w * torch.nan, "not finite")):
        how.trouble = lambda weight: weight
        evaluator = evaluator_of(llama, how)
        scorer = RacingEvaluator(evaluator, 2) if trouble is out_of_memory else evaluator
        how.trouble = trouble
        alone = told(scorer(candidates))
        assert told(BlockMajorScorer(scorer, elsewhere)(candidates)) == alone
        failed = [reason for *_, reason in alone if reason is not None]
        assert failed and len(failed) < len(candidates) and all(said in reason for reason in failed)


def test_what_fails_together_is_measured_by_itself(llama: ProxySetting) -> None:
    calls = 0

    def full(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 20:
            raise RuntimeError("can't allocate memory")
        return elsewhere(tensor, dtype)

    evaluator, candidates = llama.evaluator("loss", SETTINGS), generation(llama)
    assert told(BlockMajorScorer(evaluator, full)(candidates)) == told(evaluator(candidates))
    assert calls > 20


def test_only_what_reads_outputs_of_one_chain_of_blocks_goes_block_by_block(
    llama: ProxySetting, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert runs_by_blocks(llama.evaluator("kl_compensated", SETTINGS))
    assert runs_by_blocks(RacingEvaluator(llama.evaluator("loss", SETTINGS), 2))
    assert not any(
        runs_by_blocks(llama.evaluator(name, SETTINGS)) for name in ("phi", "hidden_alignment", "num_params")
    )
    monkeypatch.setattr(llama.net, "blocks", tuple(replace(block, stack="decoder") for block in llama.net.blocks))
    assert not runs_by_blocks(llama.evaluator("loss", SETTINGS))
