"""What a recovery comes to: the chosen weights, the losses before and after."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracenas.reporting.terminal import Outcome, Table, to_plain

__all__ = ["LOG", "RESULT", "Recovered"]

LOG, RESULT = "log.jsonl", "recovery.json"


@dataclass(frozen=True)
class Recovered(Outcome):
    """A recovered checkpoint.

    Args:
        path: its directory.
        step: of the weights that were kept: those of lowest loss on what `selected_on` says.
        steps, tokens: trained in all.
        loss: the last of the log, nats per token (distill: of the distillation loss).
        selected_on: the split that chose the step.
        selection_nll, selection_nll_before: on it, nats per token.
        reported_on: the text that nothing was chosen by, None without `text`.
        perplexity, perplexity_before: on it.
        teacher: of distillation.
        bos: whether documents begin with BOS; None: token ids that do not say, or chats of a template.
    """

    path: Path
    method: str
    step: int
    steps: int
    tokens: int
    loss: float
    selected_on: str
    selection_nll: float
    selection_nll_before: float
    reported_on: str | None = None
    perplexity: float | None = None
    perplexity_before: float | None = None
    teacher: str | None = None
    bos: bool | None = None

    def to_json(self) -> Any:
        """For `--json`."""
        return to_plain(vars(self))

    def tables(self) -> list[Table]:
        """A summary."""
        rows = [("checkpoint", str(self.path)), ("steps", f"{self.steps:,}"), ("tokens", f"{self.tokens:,}")]
        rows.append(("training loss at the end", f"{self.loss:.4f}"))
        rows.append((f"step {self.step:,} chosen on", self.selected_on))
        rows.append(("its loss there, before and after", f"{self.selection_nll_before:.4f}, {self.selection_nll:.4f}"))
        if self.perplexity is not None and self.perplexity_before is not None:
            rows.append((f"perplexity of {self.reported_on}, before", f"{self.perplexity_before:.4f}"))
            rows.append((f"perplexity of {self.reported_on}, step {self.step:,}", f"{self.perplexity:.4f}"))
        return [Table(f"recovered by {self.method}", ("", "value"), rows)]
