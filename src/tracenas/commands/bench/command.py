"""Every model in turns, against the first one (TraceNAS Table 8)."""

from collections.abc import Iterator, Sequence
from functools import partial

from tracenas.benchmark.latency import Trial, TrialSettings, quartiles, ratios, take_turns
from tracenas.commands.bench.contestants import opened
from tracenas.commands.bench.result import Bench, ModelBench
from tracenas.commands.bench.trials import trial_settings
from tracenas.config import BenchConfig
from tracenas.models.checkpoints.source import ModelSource, open_source
from tracenas.reporting.progress import phase
from tracenas.reporting.terminal import to_plain
from tracenas.rundir import check_own_json, provenance, write_json
from tracenas.space import costs

__all__ = ["bench", "prefill_flops"]


def bench(config: BenchConfig) -> Bench:
    """Measure every model, in turns, against the first one.

    Raises:
        UserError: for models that cannot be loaded, a prompt beyond their positions, a backend that is not installed.
    """
    if config.out is not None:
        check_own_json(config.out, "bench", ("setting", "models", "provenance"))
    sources = [open_source(name, decoder_only="bench") for name in config.models]
    batches = trial_settings(config, sources)
    with opened(config, sources) as models:
        with phase("bench", (config.trials + config.warmup) * len(sources) * len(batches)) as steps:
            turns = [
                take_turns(
                    [partial(models.trial, index, settings) for index in range(len(sources))],
                    config.trials,
                    config.warmup,
                    steps.advance,
                )
                for settings in batches
            ]
        setting = _setting(config, batches) | models.setting
    figures: list[ModelBench] = []
    for settings, trials in zip(batches, turns, strict=True):
        peaks: list[int | None] = [None] * len(sources)
        if not config.no_memory:
            peaks = [models.peak(index, settings, of) for index, of in enumerate(trials)]
        figures += _figures(sources, models.parameters, trials, settings, peaks)
    result = Bench(tuple(figures), setting)
    if config.out is not None:
        write_json(config.out, to_plain({**result.to_json(), "provenance": provenance(seed=config.seed)}))
    return result


def _figures(
    sources: Sequence[ModelSource],
    parameters: Sequence[int],
    trials: Sequence[Sequence[Trial]],
    settings: TrialSettings,
    peaks: Sequence[int | None],
) -> Iterator[ModelBench]:
    first, steps = trials[0], settings.new_tokens - 1
    flops = [prefill_flops(source, settings.prompt) for source in sources]
    for source, count, turns, peak, prefill in zip(sources, parameters, trials, peaks, flops, strict=True):
        yield ModelBench(
            source.name,
            settings.batch_size,
            count,
            quartiles([1000 * t.prefill for t in turns]),
            quartiles([1000 * t.decode / steps for t in turns]),
            quartiles([settings.batch_size * steps / t.decode for t in turns]),
            peak,
            ratios([t.prefill for t in first], [t.prefill for t in turns]),
            ratios([t.decode for t in first], [t.decode for t in turns]),
            flops[0] / prefill,
        )


def prefill_flops(source: ModelSource, prompt: int) -> float:
    """FLOPs of a sequence's prefill: the blocks on every token, the head on the last one."""
    space = source.space()
    head = 2.0 * source.family.head_weights(source.config)
    return prompt * costs.flops_per_token(space.layers, 0, space.base, prompt) + head


def _setting(config: BenchConfig, batches: Sequence[TrialSettings]) -> dict[str, object]:
    first = batches[0]
    return {
        "backend": config.backend,
        "prompt": first.prompt,
        "new_tokens": first.new_tokens,
        "batch_size": first.batch_size,
        "batch_sizes": [settings.batch_size for settings in batches],
        "trials": config.trials,
        "warmup": config.warmup,
    }
