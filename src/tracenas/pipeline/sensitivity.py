"""Sensitivity tables of loaded models: what identifies the model, and reading a stored table for it."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tracenas.families import Block
from tracenas.models.checkpoints.loading import LoadedModel
from tracenas.saliency.sensitivity.table import SensitivityTable

__all__ = ["model_identity", "stored_table"]

_SAMPLES = 256
"""Entries of every tensor that go into its hash."""


def model_identity(loaded: LoadedModel) -> dict[str, str]:
    """Hashes of model and tokenizer: names, shapes and evenly spaced entries of all tensors; the vocabulary.

    The model must be as it was loaded. Its dtype counts where it rounds these entries.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(loaded.model.named_parameters()):
        flat = parameter.detach().reshape(-1)
        places = torch.linspace(0, len(flat) - 1, min(_SAMPLES, len(flat)), dtype=torch.float64).long()
        digest.update(f"{name} {list(parameter.shape)}".encode())
        digest.update(flat[places.to(flat.device)].float().cpu().numpy().tobytes())
    vocabulary: Any = loaded.tokenizer.get_vocab() if loaded.tokenizer is not None else None
    words = json.dumps(vocabulary, sort_keys=True).encode()
    return {"model": digest.hexdigest(), "tokenizer": hashlib.sha256(words).hexdigest()}


def stored_table(path: Path, loaded: LoadedModel, blocks: Sequence[Block]) -> SensitivityTable:
    """A table from disk, of this model and these widths.

    Raises:
        UserError: if it is missing, damaged, or of another model, tokenizer or space.
    """
    return SensitivityTable.load(path, blocks, model_identity(loaded))
