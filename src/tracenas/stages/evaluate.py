"""`tracenas eval`: perplexity of one or more models on the same windows of held-out text."""

import math
from dataclasses import dataclass
from typing import Any

from tracenas.config import EvalConfig
from tracenas.errors import UserError
from tracenas.evaluation.perplexity import Perplexity, perplexity
from tracenas.models.loading import LoadedModel, load
from tracenas.models.source import open_source
from tracenas.stages.results import Table, print_table
from tracenas.stages.session import set_threads

__all__ = ["Evaluation", "evaluate", "held_out"]


@dataclass(frozen=True)
class Evaluation:
    """Perplexities of several models.

    Args:
        models: as they were named.
        results: one per model.
        parameters: of every model.
        text: the held-out source.
    """

    models: tuple[str, ...]
    results: tuple[Perplexity, ...]
    parameters: tuple[int, ...]
    text: str

    def to_json(self) -> Any:
        """One object, or a list of them for several models."""
        rows = [
            {
                "model": m,
                "perplexity": r.perplexity if math.isfinite(r.perplexity) else None,
                "nll": r.nll,
                "tokens": r.tokens,
                "params": p,
                "protocol": self.protocol,
            }
            for m, r, p in zip(self.models, self.results, self.parameters, strict=True)
        ]
        return rows[0] if len(rows) == 1 else rows

    @property
    def protocol(self) -> str:
        """How the perplexity was measured, in one line."""
        count, length = self.results[0].windows
        return f"{self.text}: documents joined by EOS, {count} windows of {length} tokens, first token of a window not scored"

    def table(self) -> str:
        """A plain-text table."""
        width = max(len(m) for m in self.models)
        head = f"{'model':<{width}}  {'parameters':>14}  {'perplexity':>12}  {'nll':>8}"
        rows = [
            f"{m:<{width}}  {p:>14,}  {r.perplexity:>12.4f}  {r.nll:>8.4f}"
            for m, r, p in zip(self.models, self.results, self.parameters, strict=True)
        ]
        return "\n".join([head, *rows, self.protocol])

    def show(self) -> None:
        """The table on stdout."""
        rows = [
            (m, f"{p:,}", f"{r.perplexity:.4f}", f"{r.nll:.4f}")
            for m, r, p in zip(self.models, self.results, self.parameters, strict=True)
        ]
        print_table(Table("", ("model", "parameters", "perplexity", "nll"), rows))
        print(self.protocol)


def held_out(loaded: LoadedModel, text: str, seq_len: int, limit: int | None, text_field: str | None = None) -> Any:
    """The held-out windows for a model's tokenizer, int64 [N, L]."""
    from tracenas.data.held_out import windows
    from tracenas.data.tokens import check_vocabulary

    if loaded.tokenizer is None and not text.endswith(".safetensors"):
        raise UserError(f"model {loaded.source.name} has no tokenizer; give token ids (.safetensors) as text")
    found = windows(
        text,
        loaded.tokenizer,
        seq_len,
        limit=limit,
        eos=loaded.source.config.get("eos_token_id"),
        text_field=text_field,
    )
    check_vocabulary(found, int(loaded.source.config["vocab_size"]), text)
    return found


def evaluate(config: EvalConfig) -> Evaluation:
    """Perplexity of every model on the same text, one model in memory at a time.

    Raises:
        UserError: for models or text that cannot be read.
    """
    sources = [open_source(name) for name in config.models]
    shortest = min(s.positions for s in sources)
    if config.seq_len is not None and config.seq_len > shortest:
        raise UserError(f"seq-len {config.seq_len}: the models have {shortest} positions")
    length = config.seq_len or min(4096, shortest)
    set_threads(config.threads)
    results, parameters = [], []
    for source in sources:
        loaded = load(source, device=config.device, dtype=config.dtype, trust_remote_code=config.trust_remote_code)
        tokens = held_out(loaded, config.text, length, config.max_windows, config.text_field)
        batch = config.micro_batch or max(1, 4096 // tokens.shape[1])
        results.append(perplexity(loaded.model, tokens, batch))
        parameters.append(sum(p.numel() for p in loaded.model.parameters()))
        del loaded
    return Evaluation(tuple(config.models), tuple(results), tuple(parameters), config.text)
