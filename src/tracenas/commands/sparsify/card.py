"""The README.md of a sparse checkpoint, and the count of its zeros in the written files."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import safe_open

from tracenas.config import SparsifyConfig
from tracenas.families import Block
from tracenas.models.checkpoints.headers import stored_tensors
from tracenas.models.checkpoints.published import published
from tracenas.models.checkpoints.readme import front_matter, read_front_matter, table, yaml_block
from tracenas.models.checkpoints.source import ModelSource
from tracenas.models.checkpoints.writing import Draft
from tracenas.rundir import provenance
from tracenas.saliency.layerwise import SparsityPlan
from tracenas.saliency.linear import projections
from tracenas.saliency.masks import Sparsity, nm_holds
from tracenas.saliency.sparsify import LayerCount

__all__ = ["sparsity_card", "sparsity_facts", "verified"]


def verified(path: Path, blocks: Sequence[Block], counts: Sequence[LayerCount], target: Sparsity) -> list[LayerCount]:
    """The counts with the zeros of the files, read tensor by tensor.

    Raises:
        RuntimeError: if a matrix has fewer zeros than were pruned, or breaks its N:M pattern.
    """
    stored = stored_tensors(path)
    out = []
    for (number, _, p), count in zip(projections(blocks), counts, strict=True):
        name = f"{blocks[number].path}.{p.path}.weight"
        with safe_open(str(stored[name].file), "pt") as file:
            weight = file.get_tensor(name)
        zeros = int((weight == 0).sum())
        if zeros < count.pruned or (target.m and not nm_holds(weight, target)):
            raise RuntimeError(f"{name}: {zeros} zeros in the written file, {count.pruned} weights were pruned")
        out.append(replace(count, zeros=zeros))
    return out


def sparsity_facts(
    config: SparsifyConfig,
    plan: SparsityPlan,
    counts: Sequence[LayerCount],
    losses: tuple[float | None, float | None],
    bos: bool | None,
) -> dict[str, Any]:
    """What sparsity.json says.

    Args:
        counts: `verified`.
        losses: of the base and of the sparse model.
        bos: whether the calibration's windows carry a BOS.
    """
    zeros, weights = sum(c.zeros for c in counts), sum(c.rows * c.columns for c in counts)
    base, data = published(config.model), config.data and published(config.data)
    return {
        "metric": plan.metric.name,
        "target": str(plan.target),
        "compare": "column blocks" if plan.metric.solve is not None else plan.compare,
        "ratios": Path(config.ratios).name if Path(config.ratios).exists() else config.ratios,
        "shares": {f"{i}.{name}": value for (i, name), value in plan.shares.items()},
        "sparsity": zeros / weights,
        "zeros": zeros,
        "weights": weights,
        "layers": [c.to_json() for c in counts],
        "base": base,
        "base_loss": losses[0],
        "loss": losses[1],
        "provenance": provenance(model=base, seed=config.seed, data=data, bos=bos),
    }


def sparsity_card(config: SparsifyConfig, source: ModelSource, draft: Draft, facts: Mapping[str, Any]) -> str:
    """Markdown: what was set to zero, by which metric, and what that cost."""
    base = published(source.address)
    share = f"{100 * facts['sparsity']:.2f} %"
    numbers = [
        ("zeros", f"{facts['zeros']:,} of {facts['weights']:,} weights in the blocks ({share})"),
        ("parameters, zeros included", f"{draft.parameters:,}"),
    ]
    if facts["loss"] is not None:
        numbers.append(("calibration loss, nats/token", f"{facts['loss']:.6g} (base {facts['base_loss']:.6g})"))
    layers = [(c["name"], f"{c['rows']} × {c['columns']}", f"{100 * c['sparsity']:.2f} %") for c in facts["layers"]]
    parts = [
        front_matter(base, read_front_matter(source.path).get("license"), ("tracenas", "pruned", "sparse")),
        f"# {config.out.name}",
        f"`{base}` with weights set to zero by tracenas: metric `{facts['metric']}`, target {facts['target']}, "
        f"compared by {facts['compare']}, ratios {facts['ratios']}. Shapes and configuration are the base's, so it "
        "loads as the base does; it is smaller or faster only where software makes use of zeros.",
        *([f"The base's {source.origin}."] if source.origin else []),
        "## Numbers",
        table(["", "value"], numbers),
        "## Zeros per matrix",
        table(["matrix", "shape", "zeros"], layers),
        "`sparsity.json` has the same as data.",
        "## How it was made",
        f"```sh\n{_command(config)}\n```",
        yaml_block(facts["provenance"]),
    ]
    return "\n\n".join(parts) + "\n"


def _command(config: SparsifyConfig) -> str:
    metric, ratios = (published(n) if Path(n).exists() else n for n in (config.metric, config.ratios))
    words = ["tracenas", "sparsify", published(config.model), "--metric", metric, "--sparsity", config.sparsity]
    words += ["--data", published(config.data)] if config.data is not None else []
    words += ["--bos", config.bos] if config.bos != "auto" else []
    words += ["--compare", config.compare, "--ratios", ratios, "--seed", str(config.seed), "--out", config.out.name]
    return shlex.join(words)
