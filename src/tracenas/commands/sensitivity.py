"""`tracenas sensitivity`: the predicted cost of every width of every sub-block, and the order of their units."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracenas.config import SensitivityConfig
from tracenas.data.sources import is_tokens
from tracenas.errors import UserError
from tracenas.models.checkpoints.source import open_source
from tracenas.pipeline.device_memory import streaming
from tracenas.pipeline.host_memory import keeping
from tracenas.pipeline.refit import STATISTICS_TOKENS
from tracenas.pipeline.target import resolve_target
from tracenas.reporting.progress import START, phase
from tracenas.reporting.terminal import Outcome, Table
from tracenas.saliency.sensitivity.table import SensitivityTable

__all__ = ["Sensitivities", "sensitivity"]

_SHARES = (0.0, 0.25, 0.5, 0.75)
"""Of the units, for people."""


@dataclass(frozen=True)
class Sensitivities(Outcome):
    """A table that was written.

    Args:
        path: the file.
        tokens: that it was measured on.
        sub_blocks: of every sub-block: `block`, `sub_block`, `unit`, `order` (base ids, the least important first),
            `widths`, and at each of them `rise` (predicted, nats per token) and `parameters`.
    """

    path: Path
    tokens: int
    sub_blocks: list[dict[str, Any]]

    def records(self) -> list[dict[str, Any]]:
        """Every width of every sub-block."""
        return [
            {**{name: one[name] for name in ("block", "sub_block", "unit")}, "width": w, "rise": r, "parameters": p}
            for one in self.sub_blocks
            for w, r, p in zip(one["widths"], one["rise"], one["parameters"], strict=True)
        ]

    def tables(self) -> list[Table]:
        """The predicted rise at some widths."""
        rows = []
        for one in self.sub_blocks:
            widths, rise = one["widths"], one["rise"]
            nearest = [min(range(len(widths)), key=lambda i: abs(widths[i] - s * widths[-1])) for s in _SHARES]
            cells = [f"{rise[i]:.4g} ({widths[i]:,})" for i in nearest]
            rows.append((f"{one['block']} {one['sub_block']}", f"{widths[-1]:,} {one['unit']}", *cells))
        columns = ("sub-block", "units", "bypassed", *(f"rise at {100 * s:.0f}%" for s in _SHARES[1:]))
        return [Table("", columns, rows, [f"{self.path}: predicted rise of the loss, nats per token"])]


def sensitivity(config: SensitivityConfig) -> Sensitivities:
    """Measure a sensitivity table and write it.

    Raises:
        UserError: for wrong input, too few tokens, or statistics that are not finite.
    """
    if config.out.suffix != ".safetensors":
        raise UserError(f"out {config.out}: expected a file name that ends in .safetensors")
    if config.out.exists() and not SensitivityTable.wrote(config.out):
        raise UserError(f"out {config.out}: exists, and is no sensitivity table; choose another name or remove it")
    target = resolve_target(open_source(config.model), config)
    with phase(START):
        from tracenas.pipeline.calibration import calibration_tokens
        from tracenas.pipeline.loading import load_model
        from tracenas.pipeline.sensitivity import measured_table
        from tracenas.scoring.workload import default_micro_batch
        from tracenas.threads import set_threads

    set_threads(config.threads)
    source, keep = target.source, keeping(target.source, config)
    loaded = load_model(source, config, keep, streamed=streaming(source, config))
    length = config.seq_len or min(config.longest, target.source.positions)
    tokens = calibration_tokens(
        loaded,
        config.data,
        samples=config.samples or (None if is_tokens(config.data) else -(-STATISTICS_TOKENS // length)),
        seq_len=config.seq_len,
        seed=config.seed,
        text_field=config.text_field,
        bos=config.bos,
        longest=config.longest,
        fewer=config.samples is None,
    )
    micro_batch = config.batch or default_micro_batch(
        target.blocks, target.space.base, target.hidden, tokens.shape[1], loaded.dtype.itemsize, loaded.device.type
    )
    measured = measured_table(loaded, target.blocks, tokens, micro_batch, config.seed)
    measured.save(config.out)
    specs = {(i, s.name): s for i, layer in enumerate(target.space.layers) for s in layer.sub_blocks}
    rows = [
        {
            "block": key[0],
            "sub_block": key[1],
            "unit": specs[key].unit,
            "order": one.saliency.argsort(kind="stable").tolist(),
            "widths": one.widths.tolist(),
            "rise": one.rise.tolist(),
            "parameters": [specs[key].parameters(int(width)) for width in one.widths],
        }
        for key, one in measured.costs.items()
    ]
    return Sensitivities(config.out, tokens.numel(), rows)
