"""What `tracenas prune` answers: a written checkpoint and its losses."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracenas.reporting.terminal import Outcome, Table

__all__ = ["Pruned"]


@dataclass(frozen=True)
class Pruned(Outcome):
    """A written checkpoint.

    Args:
        path: its directory.
        params, base_params: parameters of the checkpoint and of the model it was cut from.
        stock: whether transformers loads it without custom code.
        loss: of the reloaded checkpoint on the calibration, nats per token.
        scored_loss: of the candidate as it was scored.
        compensation: method, strength, text and losses of the refit; None if there was none.
        choice: which realisation was written, and the held-out losses of those that were compared.
        stub_params: those of `params` that are zeros in place of removed attention.
        one_shot: method, saliency, allocation and γ, where the architecture is a one-shot method's.
        reconstruction: how its blocks were trained, and what became of each; None if that was not asked for.
        scales: what norms, output projections and logits were multiplied by, and the calibration loss before and
            after; None: not fitted.
    """

    path: Path
    params: int
    base_params: int
    stock: bool
    loss: float
    scored_loss: float
    compensation: dict[str, Any] | None = None
    choice: dict[str, Any] | None = None
    stub_params: int = 0
    one_shot: dict[str, Any] | None = None
    reconstruction: dict[str, Any] | None = None
    scales: dict[str, Any] | None = None

    @property
    def written(self) -> str:
        """The realisation that was written: `plain`, `scored`, `ridge` or `sequential`."""
        return str((self.choice or {}).get("written", "plain"))

    def tables(self) -> list[Table]:
        """A summary."""
        share = 100 * self.params / self.base_params
        rows = [
            ("checkpoint", str(self.path)),
            ("form", "stock configuration" if self.stock else "heterogeneous, with its code"),
            ("parameters", f"{self.params:,} of {self.base_params:,} ({share:.1f}%)"),
            ("calibration loss, reloaded", f"{self.loss:.6f}"),
            ("calibration loss, as scored", f"{self.scored_loss:.6f}"),
        ]
        if self.stub_params:
            rows.insert(3, ("of these, zeros in place of attention", f"{self.stub_params:,}"))
        if self.one_shot is not None:
            how = self.one_shot
            rows.insert(0, ("method", f"{how['method']} (saliency {how['saliency']}, allocation {how['allocation']})"))
            rows += [("γ", f"{how['gamma']:.4g}")] if "gamma" in how else []
            rows += _rises(how)
        if (refit := self.compensation) is not None:
            text = "other text" if refit["separate_text"] else "the calibration itself"
            rows += [
                ("compensation", f"{refit['method']}, ridge {refit['ridge']:g}, {refit['tokens']:,} tokens ({text})"),
                ("calibration loss without it", f"{refit['plain_loss']:.6f}"),
            ]
            if refit.get("not_refitted"):
                rows.append(("not refitted (fused experts)", ", ".join(refit["not_refitted"])))
        if self.held_out_losses:
            rows.append(("held-out loss", f"{self.held_out_losses}; written: {self.written}"))
        if (trained := self.reconstruction) is not None:
            before, after = (_decimal(trained["losses"][name]) for name in ("before", "after"))
            used = sum(block["kept"] for block in trained["blocks"])
            outcome = (
                f"written, {used} of {len(trained['blocks'])} blocks as trained"
                if trained["written"]
                else "not written"
            )
            rows.append(("held-out loss, blocks trained", f"{before} before, {after} after; {outcome}"))
        if (scales := self.scales) is not None:
            before, after = (_decimal(scales["losses"][name]) for name in ("before", "after"))
            many = f"{count} factor{'s' * (count > 1)}" if (count := len(scales["factors"])) else "nothing gained"
            rows.append(("calibration loss, scaled", f"{before} before, {after} after; {many}"))
        return [Table("pruned", ("", "value"), rows)]

    @property
    def held_out_losses(self) -> str:
        """Losses of the realisations that were compared, in words; empty if none were."""
        losses: dict[str, float | None] = (self.choice or {}).get("losses", {})
        return ", ".join(f"{name} {_decimal(loss)}" for name, loss in losses.items())


def _rises(how: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The rise of the loss by a sensitivity table, beside what was measured of the refit; nothing without one."""
    if "predicted_rise" not in how:
        return []
    error = f" ± {how['measured_rise_error']:.3f}" if "measured_rise_error" in how else ""
    chosen = f"{how['predicted_rise']:.3f} predicted, {how['measured_rise']:.3f}{error} measured"
    names = {"predicted_rise_mlp": "MLPs alone", "predicted_rise_uniform": "equal ratios"}
    others = ", ".join(f"{words} {how[name]:.3f}" for name, words in names.items() if name in how)
    return [("rise of the loss, refitted", chosen), *([("predicted of others", others)] if others else [])]


def _decimal(loss: float | None) -> str:
    return "overflow" if loss is None else f"{loss:.4f}"
