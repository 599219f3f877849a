"""What sub-blocks, units, scores and models are called on pages."""

from pathlib import Path

from tracenas.formats import MISSING, data_size, decimal, short_count

__all__ = [
    "NAMES",
    "UNIT_NAMES",
    "capitalised",
    "cost_amount",
    "cost_axis",
    "cost_name",
    "model_kind",
    "proxy_label",
    "source_label",
    "spent",
    "start_label",
]

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


_COSTS = {
    "params": "parameters",
    "active_params": "active parameters",
    "flops": "FLOPs per token",
    "kv_cache": "KV cache per token",
    "memory": "memory to serve with",
    "file": "file",
    "prefill_ms": "prefill",
    "decode_ms": "decoding a token",
}
_BYTES = ("kv_cache", "memory", "file")


def cost_name(name: str) -> str:
    """What a budget counts, in words; a plug-in's by its own name."""
    return _COSTS.get(name, name)


def cost_amount(name: str, value: float) -> str:
    """A cost with its unit, short: `2.1M parameters`, `1.4 GiB memory to serve with`, `decoding a token 5.21 ms`."""
    if name.endswith("_ms"):
        return f"{cost_name(name)} {decimal(value, 3)} ms"
    return f"{data_size(value) if name in _BYTES else short_count(value)} {cost_name(name)}"


def spent(name: str, value: float | None) -> str:
    """A cost with its unit and without its name: `2.1M`, `1.4 GiB`, `5.21 ms`."""
    return MISSING if value is None else cost_amount(name, value).replace(cost_name(name), "").strip()


def capitalised(words: str) -> str:
    """The words with a capital letter first; the others stay."""
    return words[:1].upper() + words[1:]


def cost_axis(name: str, base: float) -> tuple[str, float]:
    """The name of an axis of a cost, and what a cost is multiplied with there."""
    if name.endswith("_ms"):
        return f"{cost_name(name)}, ms", 1.0
    if name in _BYTES:
        power = next((p for p in (3, 2, 1) if base >= 2 * 1024**p), 0)
        return f"{cost_name(name)}, {('bytes', 'KiB', 'MiB', 'GiB')[power]}", 1024.0**-power
    return f"{cost_name(name)}, % of base", 100 / base
