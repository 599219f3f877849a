"""Token ids on disk: a safetensors file with `input_ids` [N, L]: a run scores the same tokens again."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from tracenas.errors import UserError, first_line
from tracenas.git_lfs import refuse_pointer
from tracenas.rundir import atomic_path

__all__ = ["check_vocabulary", "default_micro_batch", "load_tokens", "noted_bos", "noted_source", "save_tokens"]

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8)


def default_micro_batch(length: int) -> int:
    """Sequences of `length` tokens per forward pass, where no number is given: 4,096 tokens, at least one sequence."""
    return max(1, 4096 // max(1, length))


def save_tokens(path: str | Path, input_ids: torch.Tensor, metadata: Mapping[str, str] | None = None) -> None:
    """Write token ids, atomically.

    Args:
        path: the `.safetensors` file.
        input_ids: [N, L] integers, stored as int64.
        metadata: strings for the file's header: where the tokens come from, and `bos`, "true" or "false": whether
            every row begins with a BOS.
    """
    if input_ids.ndim != 2:
        raise ValueError(f"input_ids must be [N, L], not {list(input_ids.shape)}")
    tensors = {"input_ids": input_ids.to("cpu", torch.int64).contiguous()}
    with atomic_path(Path(path)) as temporary:
        save_file(tensors, temporary, metadata=dict(metadata or {}))


def load_tokens(path: str | Path) -> torch.Tensor:
    """Read token ids [N, L], int64.

    Raises:
        UserError: no such file, no readable safetensors, no `input_ids`, or these are no [N, L] integers ≥ 0.
    """
    with _opened(path) as file:
        names = list(file.keys())
        input_ids: torch.Tensor | None = file.get_tensor("input_ids") if "input_ids" in names else None
    if input_ids is None:
        raise UserError(f"'{path}' has no tensor 'input_ids': it has {', '.join(sorted(names)) or 'none'}")
    shape = list(input_ids.shape)
    if input_ids.ndim != 2 or input_ids.dtype not in _INTEGERS:
        kind = str(input_ids.dtype).removeprefix("torch.")
        raise UserError(f"'{path}': input_ids are {kind} {shape}, expected integers [samples, seq_len]")
    if shape[0] < 1 or shape[1] < 2:
        raise UserError(f"'{path}': input_ids are {shape}, expected at least one sample of at least two tokens")
    if int(input_ids.min()) < 0:
        raise UserError(f"'{path}': input_ids hold a negative id, {int(input_ids.min())}")
    return input_ids.long()


def noted_bos(path: str | Path) -> bool | None:
    """Whether a token file says that its rows begin with a BOS (metadata `bos`); None: it does not say.

    Raises:
        UserError: as `load_tokens`, or the note is neither "true" nor "false".
    """
    with _opened(path) as file:
        note = (file.metadata() or {}).get("bos")
    if note not in (None, "true", "false"):
        raise UserError(f"'{path}': its metadata say bos '{note}', accepted: true, false")
    return None if note is None else note == "true"


def noted_source(path: str | Path) -> str | None:
    """Where a token file says that its tokens come from (metadata `source`); None: it does not say."""
    with _opened(path) as file:
        source: str | None = (file.metadata() or {}).get("source")
    return source


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    if not Path(path).is_file():
        raise UserError(f"token file '{path}' does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        refuse_pointer(Path(path))
        raise UserError(f"'{path}' is no readable safetensors file: {first_line(error)}") from error


def check_vocabulary(input_ids: torch.Tensor, vocab_size: int, source: str) -> None:
    """Check that a model with `vocab_size` embeddings can read the tokens.

    Raises:
        UserError: an id is too large: the tokens are another tokenizer's.
    """
    largest = int(input_ids.max()) if input_ids.numel() else -1
    if largest >= vocab_size:
        raise UserError(
            f"'{source}' holds token id {largest}, the model's vocabulary ends at {vocab_size - 1}: "
            "the tokens are another tokenizer's"
        )
