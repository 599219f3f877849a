"""What `tracenas recover` shows while it trains."""

from collections.abc import Callable, Mapping
from typing import Any

from tracenas.reporting.progress import Phase

__all__ = ["shown_records"]

_SHOWN = {
    "loss": "loss {:.4f}",
    "validation_perplexity": "validation perplexity {:.4g}",
    "perplexity": "perplexity {:.4g}",
    "tokens_per_second": "{:,.0f} tokens/s",
    "mfu": "MFU {:.1%}",
    "lr": "learning rate {:.2g}",
}
"""Of the log's records, in this order."""


def shown_records(steps: Phase) -> Callable[[Mapping[str, Any]], None]:
    """Shows the last value of everything that records hold; where there is no bar, a line for every record."""
    last: dict[str, Any] = {}

    def show(record: Mapping[str, Any]) -> None:
        last.update({key: value for key, value in record.items() if value is not None})
        steps.tell(", ".join(text.format(last[key]) for key, text in _SHOWN.items() if key in last), line=True)

    return show
