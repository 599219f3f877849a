"""What a trial of the models is."""

from collections.abc import Sequence

from tracenas.benchmark.latency import TrialSettings
from tracenas.config import BenchConfig
from tracenas.errors import UserError
from tracenas.models.checkpoints.source import ModelSource

__all__ = ["trial_settings"]


def trial_settings(config: BenchConfig, sources: Sequence[ModelSource]) -> list[TrialSettings]:
    """What a trial of these models is, per batch size.

    Raises:
        UserError: for a prompt and new tokens beyond their positions.
    """
    positions = min(s.positions for s in sources)
    prompt = config.prompt or min(4096, positions - config.new_tokens)
    if prompt < 1 or prompt + config.new_tokens > positions:
        raise UserError(
            f"{'prompt ' + str(config.prompt) + ' and ' if config.prompt else ''}{config.new_tokens} new tokens: "
            f"the models have {positions} positions"
        )
    return [TrialSettings(prompt, config.new_tokens, batch, config.kv_cache) for batch in config.batches]
