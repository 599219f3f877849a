"""What `tracenas recover` shows while it trains, and where TensorBoard's files go."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tracenas.reporting.progress import Phase

__all__ = ["shown_records", "tensorboard"]

_SHOWN = {
    "loss": "loss {:.4f}",
    "validation_perplexity": "validation perplexity {:.4g}",
    "perplexity": "perplexity {:.4g}",
    "tokens_per_second": "{:,.0f} tokens/s",
    "mfu": "MFU {:.1%}",
    "lr": "learning rate {:.2g}",
}
"""Of the log's records, in this order."""


@contextmanager
def tensorboard(out: Path) -> Iterator[None]:
    """Where transformers' integration writes, unless the environment says otherwise."""
    if "TENSORBOARD_LOGGING_DIR" in os.environ:
        yield
        return
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(out / "tensorboard")
    try:
        yield
    finally:
        del os.environ["TENSORBOARD_LOGGING_DIR"]


def shown_records(steps: Phase) -> Callable[[Mapping[str, Any]], None]:
    """Shows the last value of everything that records hold; where there is no bar, a line for every record."""
    last: dict[str, Any] = {}

    def show(record: Mapping[str, Any]) -> None:
        last.update({key: value for key, value in record.items() if value is not None})
        steps.tell(", ".join(text.format(last[key]) for key, text in _SHOWN.items() if key in last), line=True)

    return show
