"""The README.md of a pruned checkpoint: what it is, what was kept where, what it costs and how to load it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tracenas.families import Block, within
from tracenas.models.checkpoints.configuration import ATTENTION
from tracenas.models.checkpoints.published import published
from tracenas.space.architecture import Layer

__all__ = ["model_card", "stated_license"]


def model_card(
    name: str,
    base: str,
    blocks: Sequence[Block],
    layers: Sequence[Layer],
    *,
    serving: str,
    parameters: tuple[int, int],
    stubs: int = 0,
    pipeline: str = "text-generation",
    command: str = "",
    numbers: Mapping[str, object] | None = None,
    license: str | None = None,
    origin: str | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> str:
    """Markdown with the hub's YAML front matter.

    Args:
        name: of the checkpoint, as its directory is called.
        base: the pruned model, a hub id or a directory, of which the name is told (only a hub id becomes `base_model`).
        blocks: the base's blocks.
        layers: the kept counts, one per block of the base.
        serving: `serving_section(…)`.
        parameters: before and after, embeddings and head included, tied ones once.
        stubs: those that are zeros in place of removed attention.
        pipeline: the hub's name of what it does.
        command: what made it.
        numbers: shown as a table, in order (`{"perplexity, WikiText-2": 12.3}`).
        license: the base's, if known.
        origin: where the base's weights come from, where that needs to be said (a GGUF file's are dequantised).
        provenance: `rundir.provenance(…)`.
    """
    before, after = parameters
    base = published(base)
    skipped = sum(layer.skip for layer in layers)
    zeros = {"of these, zeros in place of removed attention": stubs} if stubs else {}
    body = [
        _front_matter(base, license, pipeline),
        f"# {name}",
        f"`{base}`, pruned by tracenas: {after:,} of {before:,} parameters ({after / before:.1%}), "
        f"{len(layers) - skipped} of {len(layers)} blocks.",
        *([f"The base's {origin}."] if origin else []),
        "## Architecture",
        _tables(blocks, layers, stubbed=stubs > 0),
        "Kept units of the base's. A skipped block is left out, and those behind it are renumbered (now).",
        "## Numbers",
        _numbers({"parameters": after, **zeros, "parameters of the base": before, **(numbers or {})}),
        serving,
        "## How it was made",
    ]
    if command:
        body.append(f"```sh\n{command}\n```")
    if provenance:
        facts = yaml.safe_dump(dict(provenance), sort_keys=False, allow_unicode=True).strip()
        body.append(f"```yaml\n{facts}\n```")
    if not command and not provenance:
        body.append("Not recorded.")
    return "\n\n".join(body) + "\n"


def stated_license(model: Path | None) -> str | None:
    """The `license` that a model directory's README.md names in its front matter, if there is one."""
    if model is None or not (model / "README.md").is_file():
        return None
    parts = (model / "README.md").read_text(encoding="utf-8", errors="replace").split("---\n", 2)
    if len(parts) < 3 or parts[0].strip():
        return None
    try:
        front = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return None
    license = front.get("license") if isinstance(front, dict) else None
    return license if isinstance(license, str) else None


def _front_matter(base: str, license: str | None, pipeline: str) -> str:
    front: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": pipeline}
    if base.count("/") == 1:
        front["base_model"] = base
    if license:
        front["license"] = license
    front["tags"] = ["tracenas", "pruned"]
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---"


def _tables(blocks: Sequence[Block], layers: Sequence[Layer], *, stubbed: bool) -> str:
    """A table per stack of blocks."""
    parts = []
    for stack in dict.fromkeys(block.stack for block in blocks):
        parts += [f"**{stack.capitalize()}**"] if stack else []
        pairs = [(b, la) for b, la in zip(blocks, layers, strict=True) if b.stack == stack]
        parts.append(_table([b for b, _ in pairs], [la for _, la in pairs], stubbed=stubbed))
    return "\n\n".join(parts)


def _table(blocks: Sequence[Block], layers: Sequence[Layer], *, stubbed: bool) -> str:
    names = [s.spec.unit.replace("_", " ") for s in blocks[0].sub_blocks]
    rows = [["block", *names, "now"], ["--:"] * (len(names) + 2)]
    place = 0
    for index, (block, layer) in enumerate(zip(blocks, layers, strict=True)):
        if layer.skip:
            rows.append([str(index), *["–"] * len(names), "skipped"])
            continue
        counts = [
            f"{kept:,} of {sub.spec.units:,}" if kept else _removed(sub.spec.name, stubbed)
            for sub, kept in within(block, layer)
        ]
        rows.append([str(index), *counts, str(place)])
        place += 1
    return _lines(rows)


def _removed(name: str, stubbed: bool) -> str:
    return "bypassed (zeros)" if stubbed and name == ATTENTION else "bypassed"


def _numbers(numbers: Mapping[str, object]) -> str:
    return _lines([["", "value"], ["---", "--:"], *([key, _number(value)] for key, value in numbers.items())])


def _number(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _lines(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
