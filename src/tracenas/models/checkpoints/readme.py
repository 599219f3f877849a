"""Parts of a checkpoint's README.md: the hub's front matter, tables, facts as YAML."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

__all__ = ["front_matter", "read_front_matter", "readme_text", "table", "yaml_block"]


def readme_text(model: Path | None) -> str:
    """A model directory's README.md; '' where there is none."""
    path = None if model is None else model / "README.md"
    return path.read_text(encoding="utf-8-sig", errors="replace") if path is not None and path.is_file() else ""


def read_front_matter(model: Path | None) -> dict[str, str]:
    """The texts (`license`, `base_model`) in the front matter of a model directory's README.md, if there is one."""
    parts = readme_text(model).split("---\n", 2)
    if len(parts) < 3 or parts[0].strip():
        return {}
    try:
        front = yaml.safe_load(parts[1])
    except (yaml.YAMLError, ValueError):  # a date or a number that is none
        return {}
    return {k: v for k, v in front.items() if isinstance(v, str)} if isinstance(front, dict) else {}


def front_matter(base: str, license: str | None, tags: Sequence[str], pipeline: str = "text-generation") -> str:
    """The hub's YAML front matter of what is made from a base.

    Args:
        base: `published`; only a hub id becomes `base_model`, without its commit, which the hub has no key for.
        license: the base's, if known.
        pipeline: the hub's name of what the model does.
    """
    front: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": pipeline}
    if base.count("/") == 1:
        front["base_model"] = base.partition("@")[0]
    if license:
        front["license"] = license
    return f"---\n{_yaml({**front, 'tags': list(tags)})}---"


def yaml_block(facts: Mapping[str, Any]) -> str:
    """Facts as a fenced block of YAML."""
    return f"```yaml\n{_yaml(facts).strip()}\n```"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], marks: Sequence[str] | None = None) -> str:
    """A Markdown table.

    Args:
        marks: a mark of alignment per column, `---` or `--:`; None: all `---`.
    """
    lines = [columns, marks or ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def _yaml(facts: Mapping[str, Any]) -> str:
    return str(yaml.safe_dump(dict(facts), sort_keys=False, allow_unicode=True))
