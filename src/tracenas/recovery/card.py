"""What recovery adds to a checkpoint's README.md, and the base that it names."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tracenas.models.checkpoints.readme import read_front_matter, readme_text, table, yaml_block
from tracenas.models.checkpoints.serving import with_serving

__all__ = ["base_model", "recovery_section", "with_section"]

_PRUNED = re.compile(r"^`(?P<base>[^`]+)`(, pruned| with weights set to zero) by tracenas", re.M)


def base_model(model: Path) -> str | None:
    """The dense model that a checkpoint's README.md says it was made from."""
    if match := _PRUNED.search(readme_text(model)):
        return match["base"]
    return read_front_matter(model).get("base_model")


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
    return (
        f"## Recovery\n\n`{source}`, trained by `tracenas recover --method {method}` on `{data}`. "
        f"Losses and perplexities further up are those before it.\n\n"
        f"{table(['', 'value'], [(key, str(value)) for key, value in numbers.items()], ['---', '--:'])}\n\n"
        f"{yaml_block({**settings, 'provenance': dict(provenance)})}\n"
    )


def with_section(model: Path | None, name: str, section: str, serving: str = "") -> str:
    """The README.md of a model, or a short one in its place, with a section at its end.

    Args:
        serving: replaces what it says of serving, where the model went by another name.
    """
    text = readme_text(model)
    if not text.strip():
        text = f"---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- tracenas\n---\n\n# {name}\n"
    if serving:
        text = with_serving(text, serving)
    return text.rstrip("\n") + "\n\n" + section
