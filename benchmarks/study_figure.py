"""The figure of docs/study.md: how well every proxy orders architectures, study by study.

    python benchmarks/study_figure.py benchmarks/results/study.json --out docs/images/study.png

A row per proxy, the best mean within a budget first; a column per study; Spearman's ρ with the study's main target. A
frame marks the studies in which the proxy's 95 % interval reaches the highest ρ of that study.
"""

import argparse
import math
import statistics
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle

from tracenas.rundir import read_json

INK = "#22303c"


def correlations(studies: dict[str, dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Proxy → study → ρ with its interval; undefined ones are left out."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for place, study in studies.items():
        for row in study["proxies"]:
            rho = row["targets"][study["main_target"]]["rho"]
            found.setdefault(row["name"], {})
            if rho["value"] is not None:
                found[row["name"]][place] = rho
    return found


def draw(studies: dict[str, dict[str, Any]], out: Path) -> None:
    """Write the figure."""
    table = correlations(studies)
    within = [place for place, study in studies.items() if study["within_budget"]]

    def mean(name: str) -> float:
        known = [table[name][p]["value"] for p in within if p in table[name]]
        return statistics.mean(known) if known else -math.inf

    names, places = sorted(table, key=mean, reverse=True), list(studies)
    top = {p: max(rhos[p]["value"] for rhos in table.values() if p in rhos) for p in places}
    figure, axes = plt.subplots(figsize=(2.6 + 0.62 * len(places), 1.7 + 0.3 * len(names)))
    colours = matplotlib.colormaps["RdBu"]
    for y, name in enumerate(names):
        for x, place in enumerate(places):
            rho = table[name].get(place)
            if rho is None:
                axes.text(x, y, "–", ha="center", va="center", fontsize=8, color=INK)
                continue
            value = rho["value"]
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, color=colours(0.5 + 0.42 * value), linewidth=0))
            weight, colour = ("bold" if value >= 0.9 else "normal"), ("white" if abs(value) > 0.75 else INK)
            label = f"{value:.2f}".replace("-", "\N{MINUS SIGN}")
            axes.text(x, y, label, ha="center", va="center", fontsize=8, color=colour, weight=weight)
            if rho["high"] is not None and rho["high"] >= top[place]:
                corner = (x - 0.46, y - 0.46)
                axes.add_patch(Rectangle(corner, 0.92, 0.92, fill=False, edgecolor=INK, linewidth=0.8))
    axes.set_xlim(-0.5, len(places) - 0.5)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xticks(range(len(places)), places, rotation=40, ha="left", fontsize=8, color=INK)
    axes.set_yticks(range(len(names)), names, fontsize=9, color=INK)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    for side in axes.spines.values():
        side.set_visible(False)
    figure.savefig(out, dpi=110, bbox_inches="tight", metadata={"Software": None})


def main() -> None:
    """Read, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    draw(read_json(args.results)["studies"], args.out)


if __name__ == "__main__":
    main()
