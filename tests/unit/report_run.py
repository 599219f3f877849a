"""Synthetic run directories, as a search of the paper's shape leaves them."""

import json
import math
import random
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]

HEADS, CHANNELS = 12, 1536
BASE = 134_515_008
CONFIG: Object = {
    "model": "HuggingFaceTB/SmolLM2-135M",
    "proxy": "phi",
    "params": "60%",
    "data": "wikitext2",
    "samples": 16,
    "seq_len": 512,
    "keep_layers": [0, -1],
    "resume": False,
    "mutation": {"depth": 0.2, "width": 0.2, "sigma": 0.3},
}
PROVENANCE: Object = {
    "versions": {"tracenas": "0.1.0", "torch": "2.8.0"},
    "python": "3.11.9",
    "git": "a1b2c3d",
}
REASONS = ["loss is not finite", "out of memory", "cannot be repaired into the budget"]


def make_arch(rng: random.Random, layers: int) -> Object:
    keep = [0.55 + 0.4 * i / layers + rng.gauss(0, 0.02) for i in range(layers)]
    rows: list[Object] = []
    for i in range(layers):
        if rng.random() < 0.06 and 0 < i < layers - 1:
            rows.append({"skip": True})
            continue
        attention = min(1.0, max(0.1, rng.gauss(keep[i], 0.12)))
        mlp = min(1.0, max(0.1, rng.gauss(keep[-1 - i] * 0.85, 0.12)))
        rows.append({"heads": max(1, round(attention * HEADS)), "channels": round(mlp * CHANNELS / 32) * 32})
    return {"layers": rows}


def make_record(rng: random.Random, layers: int, generation: int, failing: float) -> Object:
    """A line of the journal; scores rise with the generation."""
    arch = make_arch(rng, layers)
    skipped = ["skip" in layer for layer in arch["layers"]]
    score = layers * (1 - 0.8 ** (generation + 2)) + 0.6 * sum(skipped) + rng.gauss(0, 0.5)
    record: Object = {
        "id": f"{rng.getrandbits(64):016x}",
        "generation": generation,
        "arch": arch,
        "params": 80_700_000 - rng.randrange(700_000),
        "score": score,
        "loss": 6.2 - 0.15 * score + rng.gauss(0, 0.05),
        "seconds": rng.uniform(1.4, 1.9),
        "rho": {
            name: [None if s else min(1.0, rng.gauss(0.7, 0.18)) for s in skipped] for name in ("attention", "mlp")
        },
    }
    if rng.random() < failing:
        record.update(score=None, loss=None, rho=None, reason=rng.choice(REASONS))
    return record


def make_comparison(found_wins: bool) -> list[Object]:
    sizes = {"base": BASE, "uniform": 80_612_352, "found": 80_655_552}
    perplexities = {"base": 16.42, "uniform": 118.4}
    chance = [171.3, 262.9, 140.2, 310.7, 198.0]
    perplexities |= {f"random {i}": p for i, p in enumerate(chance, start=1)}
    perplexities["found"] = 84.31 if found_wins else 131.2
    return [
        {
            "name": name,
            "params": sizes.get(name, 80_500_000),
            "perplexity": p,
            "nll": math.log(p),
            "text": "wikitext2",
            "tokens": 65_408,
        }
        for name, p in perplexities.items()
    ]


def keep_starts(run: Path, **places: int) -> None:
    """Say in start.json that the journal's records at these places are the search's starts, by name."""
    records = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    (run / "start.json").write_text(json.dumps({name: records[place]["arch"] for name, place in places.items()}))


def make_run(
    path: Path,
    *,
    layers: int = 12,
    iterations: int = 20,
    failing: float = 0.03,
    found_wins: bool = True,
    **summary: Any,
) -> Path:
    """A run directory with 30 candidates in the first generation and 20 in every other."""
    rng = random.Random(7)
    path.mkdir(parents=True)
    generations = [g for g in range(iterations) for _ in range(30 if g == 0 else 20)]
    records = [make_record(rng, layers, g, failing) for g in generations]
    (path / "journal.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (path / "config.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False))
    comparison = make_comparison(found_wins)
    scored = [r for r in records if r["score"] is not None]
    if scored:
        best = max(scored, key=lambda r: r["score"])
        found = {"architecture": best["arch"], "score": best["score"], "provenance": PROVENANCE}
        (path / "best.json").write_text(json.dumps(found))
        comparison[-1].update(loss=best["loss"], score=best["score"])
    data: Object = {
        "model": CONFIG["model"],
        "base": {
            "params": BASE,
            "units": {"heads": [HEADS] * layers, "channels": [CHANNELS] * layers},
            "layers": layers,
        },
        "budget": {"limit": 80_709_004, "lower": 79_901_914},
        "seed": 0,
        "evaluations": len(records),
        "duplicates": 17,
        "seconds": 712.4,
        "proxy": "phi",
        "strategy": "evolution",
        "population": 30,
        "elites": 10,
        "peak_memory_bytes": 1_310_000_000,
        "comparison": comparison,
        "checkpoint": {"path": "run/pruned", "format": "heterogeneous"},
        **summary,
    }
    (path / "summary.json").write_text(json.dumps(data))
    return path
