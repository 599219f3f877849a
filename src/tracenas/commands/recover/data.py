"""What a recovery reads: what it trains on, the split that chooses its checkpoint, and the text that is reported."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from tracenas.commands.recover.checks import split_name
from tracenas.config import RecoverConfig
from tracenas.data.windows import WindowStart
from tracenas.errors import UserError
from tracenas.models.checkpoints.loading import LoadedModel
from tracenas.pipeline.calibration import held_out, text_encoding, window_start
from tracenas.recovery.datasets import Example, Examples, Rows, text_examples
from tracenas.recovery.instructions import instruction_examples

__all__ = ["SELECTION_WINDOWS", "RecoveryData", "recovery_data"]

SELECTION_WINDOWS = 64
"""Sequences that are split off the data at most, where no number is given."""


@dataclass(frozen=True)
class RecoveryData:
    """What a recovery reads.

    Args:
        examples: what it trains on.
        validation: what it does not train on, and chooses its checkpoint by.
        selected_on: what these are, in words.
        windows: int64 [N, L] of the text that is only reported; None without one.
        bos: whether documents begin with BOS; None: token ids that do not say, or chats of a template.
    """

    examples: Examples
    validation: list[Example]
    selected_on: str
    windows: Tensor | None
    bos: bool | None


def recovery_data(config: RecoverConfig, loaded: LoadedModel) -> RecoveryData:
    """Read it, before anything is written.

    Raises:
        UserError: if something is wrong with it, or there is too little.
    """
    examples = _examples(config, loaded, config.data)
    next(iter(examples))
    limit = config.windows or SELECTION_WINDOWS
    if config.validation is None:
        validation, examples = examples.split(limit)
        kind = "examples" if config.method == "lora" else f"sequences of {config.seq_len} tokens"
        selected_on = f"{len(validation):,} {kind} split off {config.data}"
    else:
        validation = _validation(config, loaded, config.validation, limit)
        selected_on = split_name(config.validation, "validation")
    windows = None
    if config.text is not None:
        windows = _windows(config, loaded, config.text, "held_out")
    return RecoveryData(examples, validation, selected_on, windows, _start(config, loaded, config.data).carried)


def _validation(config: RecoverConfig, loaded: LoadedModel, source: str, limit: int) -> list[Example]:
    if config.method == "lora":
        return _examples(config, loaded, source).sample(limit)
    rows = _windows(config, loaded, source, "validation")
    return Rows(rows, config.seed).sample(len(rows))


def _windows(config: RecoverConfig, loaded: LoadedModel, text: str, use: Literal["validation", "held_out"]) -> Tensor:
    assert config.seq_len is not None
    setting = "validation" if use == "validation" else "text"
    limit, field = config.windows, config.text_field
    return held_out(loaded, text, config.seq_len, limit, field, bos=config.bos, setting=setting, use=use)


def _start(config: RecoverConfig, loaded: LoadedModel, source: str) -> WindowStart:
    """What documents begin with; a chat begins as the tokenizer's chat template has it.

    Raises:
        UserError: as `window_start`; a `bos` that nothing would read.
    """
    if config.method != "lora" or (loaded.tokenizer is not None and not loaded.tokenizer.chat_template):
        return window_start(loaded, source, config.bos)
    if config.bos != "auto" and config.text is None:
        raise UserError(f"bos {config.bos}: the tokenizer's chat template says how a chat begins; leave it out")
    return WindowStart()


def _examples(config: RecoverConfig, loaded: LoadedModel, source: str) -> Examples:
    assert config.seq_len is not None
    encoding = text_encoding(loaded, _start(config, loaded, source), config.text_field)
    if config.method == "lora":
        loaded.require_tokenizer("instruction tuning needs one")
        return instruction_examples(source, encoding, config.seq_len, seed=config.seed)
    return text_examples(source, encoding, config.seq_len, seed=config.seed)
