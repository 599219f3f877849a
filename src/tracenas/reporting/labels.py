"""What sub-blocks, units, scores and models are called on pages."""

from pathlib import Path

__all__ = ["NAMES", "UNIT_NAMES", "model_kind", "proxy_label", "source_label", "start_label"]

NAMES = {"heads": "Attention", "kv_heads": "KV groups", "cross_heads": "Cross-attention", "channels": "MLP"}
"""Sub-blocks by the unit that is cut in them, in the order of a block."""
UNIT_NAMES = {
    "heads": "attention heads",
    "kv_heads": "KV groups",
    "cross_heads": "cross-attention heads",
    "channels": "MLP channels",
}


def proxy_label(proxy: str | None) -> str:
    """How a proxy's score is called on axes and in tables: Φ, or the proxy's name."""
    return "Φ" if proxy in (None, "phi") else f"score ({proxy})"


def source_label(source: object) -> str:
    """A text or a model: a local path's last part; a name on the hub or a mixture as it stands."""
    text = str(source)
    return Path(text).name if text.startswith(("/", ".")) and "=" not in text else text


def start_label(start: str) -> str:
    """What a search's start is called in sentences, by its name."""
    return {"fisher": "the closed form", "mlp": "MLPs alone"}.get(start, start)


def model_kind(name: str) -> str:
    """What a model of a comparison is, by the first word of its name: base, uniform, random, found or other."""
    kind = name.partition(" ")[0]
    return kind if kind in ("base", "uniform", "random", "found") else "other"
