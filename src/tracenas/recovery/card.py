"""What recovery adds to a checkpoint's README.md, and the base that it names."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tracenas.models.checkpoints.serving import with_serving

__all__ = ["base_model", "recovery_section", "with_section"]

_PRUNED = re.compile(r"^`(?P<base>[^`]+)`(, pruned| with weights set to zero) by tracenas", re.M)


def base_model(model: Path) -> str | None:
    """The dense model that a checkpoint's README.md says it was made from."""
    text = _readme(model)
    if match := _PRUNED.search(text):
        return match["base"]
    parts = text.split("---\n", 2)
    if len(parts) == 3 and not parts[0].strip():
        try:
            front = yaml.safe_load(parts[1])
        except yaml.YAMLError:
            return None
        base = front.get("base_model") if isinstance(front, dict) else None
        return base if isinstance(base, str) else None
    return None


def recovery_section(
    *,
    source: str,
    method: str,
    data: str,
    numbers: Mapping[str, object],
    settings: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> str:
    """Markdown: what was trained on what, for how long, and what came of it."""
    rows = "\n".join(f"| {key} | {value} |" for key, value in numbers.items())
    facts = yaml.safe_dump({**settings, "provenance": dict(provenance)}, sort_keys=False, allow_unicode=True).strip()
    return (
        f"## Recovery\n\n`{source}`, trained by `tracenas recover --method {method}` on `{data}`. "
        f"Losses and perplexities further up are those before it.\n\n|  | value |\n| --- | --: |\n{rows}\n\n"
        f"```yaml\n{facts}\n```\n"
    )


def with_section(model: Path | None, name: str, section: str, serving: str = "") -> str:
    """The README.md of a model, or a short one in its place, with a section at its end.

    Args:
        serving: replaces what it says of serving, where the model went by another name.
    """
    text = _readme(model) if model is not None else ""
    if not text.strip():
        text = f"---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- tracenas\n---\n\n# {name}\n"
    if serving:
        text = with_serving(text, serving)
    return text.rstrip("\n") + "\n\n" + section


def _readme(model: Path) -> str:
    path = model / "README.md"
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
