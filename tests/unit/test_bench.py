"""Latency: what a trial runs, turns, medians; and the bench stage on the demo model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import angle_flops, save_tiny, tiny_model

from tracenas.benchmark.latency import (
    Quartiles,
    Trial,
    TrialSettings,
    prompt_ids,
    quartiles,
    ratios,
    run_trial,
    take_turns,
)
from tracenas.commands.bench.command import bench, prefill_flops
from tracenas.config import BenchConfig
from tracenas.errors import UserError
from tracenas.models.checkpoints.source import open_source


def test_spread_and_ratios() -> None:
    assert quartiles([3.0]) == Quartiles(3, 3, 3)
    assert quartiles([1, 2, 3, 4, 5]) == Quartiles(3, 2, 4)
    # A machine that halves its speed in turn 2 does so for both: the ratio stays.
    assert ratios([2, 4, 2], [1, 2, 1]) == Quartiles(2, 2, 2)


def test_models_take_turns_and_warm_up_does_not_count() -> None:
    order: list[str] = []

    def contestant(name: str, seconds: float) -> Any:
        def run() -> Trial:
            order.append(name)
            return Trial(seconds * len(order), 1.0, 0)

        return run

    steps: list[int] = []
    found = take_turns([contestant("a", 1), contestant("b", 1)], count=2, warmup=1, advance=steps.append)
    assert "".join(order) == "abbaab"
    assert [[t.prefill for t in of] for of in found] == [[4, 5], [3, 6]]
    assert steps == [1] * 6


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_a_trial_generates_what_generate_does(cache: Any) -> None:
    """The tokens fed while decoding are the greedy continuation, every one after one forward pass."""
    model = tiny_model("llama")
    settings = TrialSettings(prompt=12, new_tokens=6, cache=cache)
    ids = prompt_ids(settings, 257, seed=3)
    fed: list[torch.Tensor] = []
    model.register_forward_pre_hook(lambda _m, _a, kwargs: fed.append(kwargs["input_ids"]), with_kwargs=True)
    result = run_trial(model, ids, settings)
    assert result.prefill > 0 and result.decode > 0 and result.extra_bytes == 0
    assert [f.shape[1] for f in fed] == [12] + [1] * 5
    decoded = torch.cat(fed[1:], dim=1)
    expected = model.generate(
        ids, max_new_tokens=6, min_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert torch.equal(decoded, expected[:, 12:17])


def test_the_prompt_is_the_same_for_a_seed() -> None:
    settings = TrialSettings(prompt=5, new_tokens=2, batch_size=3)
    assert prompt_ids(settings, 100, 0).shape == (3, 5)
    assert torch.equal(prompt_ids(settings, 100, 0), prompt_ids(settings, 100, 0))
    assert not torch.equal(prompt_ids(settings, 100, 0), prompt_ids(settings, 100, 1))


def test_bench_compares_with_the_first_model(tmp_path: Path, tokenizer: Any) -> None:
    first = str(save_tiny(tmp_path / "first", "llama", tokenizer))
    second = str(save_tiny(tmp_path / "second", "llama", tokenizer, num_hidden_layers=2))
    config = BenchConfig(
        models=(first, second), new_tokens=4, trials=1, warmup=1, no_memory=True, device="cpu", out=tmp_path / "b.json"
    )
    found = bench(config)
    rows = found.to_json()["models"]
    assert found.setting["prompt"] == 60 and found.setting["cache"] == "dynamic"
    assert rows[0]["prefill_speedup"]["median"] == 1 and rows[0]["prefill_flop_ratio"] == 1
    ratio = prefill_flops(open_source(first), 60) / prefill_flops(open_source(second), 60)
    assert rows[1]["prefill_flop_ratio"] == ratio
    assert 1.5 < ratio < 2
    assert rows[1]["throughput_tokens_per_s"]["median"] == pytest.approx(1000 / rows[1]["tpot_ms"]["median"])
    assert rows[1]["peak_memory_bytes"] is None
    assert "second" in found.table() and "not measured" in found.table()
    assert (tmp_path / "b.json").is_file()


def test_flops_of_the_prefill_are_what_torch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    from tracenas.demo import model_path
    from tracenas.models.checkpoints.loading import load

    source = open_source(str(model_path()))
    model = load(source, device="cpu", dtype="fp32").model
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.zeros(1, 256, dtype=torch.long), logits_to_keep=1)
    counts = counter.get_flop_counts()["Global"]
    products = sum(n for op, n in counts.items() if "attention" not in str(op)) - angle_flops(counter)
    scores = 8 * 256 * 2 * 257 * 160  # blocks × tokens × 2 · (T + 1) · heads · head_dim
    assert prefill_flops(source, 256) == products + scores


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"prompt": 500}, "prompt 500 and 128 new tokens"), ({"new_tokens": 512}, "512 new tokens: the models have 512")],
)
def test_a_prompt_beyond_the_positions_is_refused(settings: dict[str, int], message: str) -> None:
    from tracenas.demo import model_path

    with pytest.raises(UserError, match=message):
        bench(BenchConfig(models=(str(model_path()),), **settings))


@pytest.mark.slow
def test_memory_grows_with_the_prompt_and_starts_at_the_weights() -> None:
    from tracenas.benchmark.memory import peak_bytes
    from tracenas.demo import model_path

    def peak(prompt: int, batch: int) -> int:
        settings = TrialSettings(prompt=prompt, new_tokens=4, batch_size=batch)
        return peak_bytes(str(model_path()), settings, dtype="fp32", threads=1, trust_remote_code=False, seed=0)

    small, large = peak(16, 1), peak(480, 4)
    weights = 4 * 2_869_920
    assert weights <= small < weights + 30_000_000
    assert large > small + 4_000_000


def test_batch_sizes_are_measured_one_after_the_other(tmp_path: Path, tokenizer: Any) -> None:
    first = str(save_tiny(tmp_path / "first", "llama", tokenizer))
    second = str(save_tiny(tmp_path / "second", "llama", tokenizer, num_hidden_layers=2))
    config = BenchConfig(
        models=(first, second), prompt=8, new_tokens=4, trials=1, warmup=0, batch="1,3", no_memory=True, device="cpu"
    )
    found = bench(config)
    assert [(m.model, m.batch) for m in found.models] == [(first, 1), (second, 1), (first, 3), (second, 3)]
    for row in found.models:
        assert row.throughput.median == pytest.approx(1000 * row.batch / row.tpot.median)
    assert [m.prefill_speedup.median == 1 for m in found.models] == [True, False, True, False]
    assert "Sequences" in found.table() and "1, 3 × 8 prompt tokens" in found.table()


def test_models_that_do_not_fit_side_by_side_are_loaded_one_at_a_time(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gc
    import weakref

    from tracenas.commands.bench import torch_models

    names = [str(save_tiny(tmp_path / name, "llama", tokenizer)) for name in ("first", "second")]
    alive: list[Any] = []
    real = torch_models.load

    def counted(source: Any, **how: Any) -> Any:
        gc.collect()
        assert not [ref for ref in alive if ref() is not None], "another model is in memory"
        loaded = real(source, **how)
        alive.append(weakref.ref(loaded.model))
        return loaded

    monkeypatch.setattr(torch_models, "load", counted)
    monkeypatch.setattr(torch_models, "available_memory", lambda: 1000)
    settings = {"prompt": 8, "new_tokens": 4, "trials": 2, "warmup": 0, "no_memory": True, "device": "cpu"}
    found = bench(BenchConfig(models=tuple(names), **settings))
    assert len(alive) == 4 and "loaded for every trial" in found.table()
    monkeypatch.setattr(torch_models, "available_memory", lambda: 1 << 40)
    assert "loaded for every trial" not in bench(BenchConfig(models=tuple(names), **settings)).table()


@pytest.mark.parametrize("batch", ["0", "1,x", ""])
def test_a_batch_that_is_none_is_refused(batch: str) -> None:
    with pytest.raises(UserError, match="expected numbers from 1 up"):
        BenchConfig(models=("m",), batch=batch)


def test_what_is_compiled_needs_a_turn_that_does_not_count() -> None:
    with pytest.raises(UserError, match="warmup 0: torch-compile"):
        BenchConfig(models=("m",), backend="torch-compile", warmup=0)
