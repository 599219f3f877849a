"""Sensitivity tables of loaded models: measured with what identifies the model, or read where they are stored."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tracenas.errors import UserError
from tracenas.families import Block
from tracenas.models.checkpoints.loading import LoadedModel
from tracenas.models.functionals.memory import within_memory
from tracenas.paging import in_memory
from tracenas.pipeline.refit.statistics import StoredGrams
from tracenas.pipeline.refit.text import compensation_text
from tracenas.pipeline.run_directory import SENSITIVITY
from tracenas.pipeline.session import Calibrated, Session
from tracenas.reporting.progress import phase
from tracenas.resident import give_back
from tracenas.rundir import provenance
from tracenas.saliency.fisher import label_generator
from tracenas.saliency.sensitivity.measuring import measure_sensitivity
from tracenas.saliency.sensitivity.table import SensitivityTable

__all__ = ["measured_table", "model_identity", "run_table", "session_table", "stored_table"]

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


def measured_table(
    loaded: LoadedModel,
    blocks: Sequence[Block],
    tokens: torch.Tensor,
    micro_batch: int,
    seed: int,
    grams: StoredGrams | None = None,
    sweepers: int = 1,
) -> SensitivityTable:
    """A table measured on tokens, int64 [N, L], with the hashes of the model and where it comes from.

    Args:
        loaded: its units in the base's order.
        seed: that the tokens were drawn by.
        grams: where the second moments are put aside, if they are wanted.
        sweepers: sub-blocks that are swept at a time.

    Raises:
        UserError: as `measure_sensitivity`, and if a pass runs out of memory.
    """
    rows = tokens.to(loaded.device)
    labels = label_generator(tokens)

    def measure(count: int) -> SensitivityTable:
        stream = None if grams is None else grams.begin(loaded.model, tokens)
        put = None if grams is None else grams.put
        drawn = labels.manual_seed(labels.initial_seed())
        return measure_sensitivity(
            loaded.model,
            blocks,
            rows,
            count,
            drawn,
            put=put,
            stream=stream,
            keep=loaded.keep,
            sweepers=sweepers,
            report=steps.report,
        )

    with phase("sensitivity table") as steps:
        table = within_memory(
            lambda: measure(micro_batch),
            measure,
            what="the sensitivity table's pass",
            micro_batch=min(micro_batch, len(tokens)),
            device=loaded.device,
        )
    if loaded.keep is not in_memory:
        give_back()
    origin = {**model_identity(loaded), "tokens": list(tokens.shape), "provenance": provenance(seed=seed)}
    return SensitivityTable(table.costs, origin)


def run_table(
    calibrated: Calibrated, micro_batch: int, *, compensated: bool, file: Path | None = None
) -> SensitivityTable:
    """The table of a run, which it keeps: its own, else that of a file, else measured now.

    Args:
        calibrated: with the model as it was loaded; without a run directory, nothing is read or kept.
        compensated: whether it is measured on the text that output projections are refitted on, in place of the
            calibration.
        file: of a table.

    Raises:
        UserError: as `stored_table` and `measured_table`.
    """
    loaded, blocks = calibrated.loaded, calibrated.blocks
    kept = None if calibrated.run is None else calibrated.run / SENSITIVITY
    if kept is not None and kept.is_file():
        return stored_table(kept, loaded, blocks)
    if file is not None:
        table = stored_table(file, loaded, blocks)
    else:
        tokens = compensation_text(calibrated, keep=True).tokens if compensated else calibrated.tokens
        table = measured_table(
            loaded, blocks, tokens, micro_batch, calibrated.seed, calibrated.grams, calibrated.sweepers
        )
    if kept is not None:
        table.save(kept)
    return table


def session_table(session: Session) -> SensitivityTable:
    """`run_table` for a proxy, on the text of refits, once per session: while no super-network has permuted units yet.

    Raises:
        UserError: as `run_table`.
    """
    if session.table is None:
        if session.net is not None and not session.net.restored:
            raise ValueError("a sensitivity table is measured on the base, and this is a super-network by now")
        try:
            session.table = run_table(session, session.micro_batch, compensated=True)
        except UserError as error:
            raise UserError(f"proxy fisher: {error}") from error
    return session.table
