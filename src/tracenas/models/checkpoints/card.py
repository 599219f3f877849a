"""The README.md of a pruned checkpoint: what it is, what was kept where, what it costs and how to load it."""

from collections.abc import Mapping, Sequence
from typing import Any

from tracenas.families import Block, within
from tracenas.models.checkpoints.configuration import ATTENTION
from tracenas.models.checkpoints.published import published
from tracenas.models.checkpoints.readme import front_matter, table, yaml_block
from tracenas.space.architecture import Layer

__all__ = ["model_card"]


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
        front_matter(base, license, ("tracenas", "pruned"), pipeline),
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
        body.append(yaml_block(provenance))
    if not command and not provenance:
        body.append("Not recorded.")
    return "\n\n".join(body) + "\n"


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
    rows: list[list[str]] = []
    place = 0
    for index, (block, layer) in enumerate(zip(blocks, layers, strict=True)):
        if layer.skip:
            rows.append([str(index), *["–"] * len(names), "skipped"])
            continue
        removed = {ATTENTION: "bypassed (zeros)"} if stubbed else {}
        counts = [
            f"{kept:,} of {sub.spec.units:,}" if kept else removed.get(sub.spec.name, "bypassed")
            for sub, kept in within(block, layer)
        ]
        rows.append([str(index), *counts, str(place)])
        place += 1
    return table(["block", *names, "now"], rows, ["--:"] * (len(names) + 2))


def _numbers(numbers: Mapping[str, object]) -> str:
    return table(["", "value"], [(key, _number(value)) for key, value in numbers.items()], ["---", "--:"])


def _number(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
