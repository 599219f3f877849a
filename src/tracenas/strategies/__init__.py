"""Search strategies over any space, ask and tell; no torch. What is scored and recorded is passed in."""

from typing import Any

from tracenas.registry import Registry
from tracenas.strategies.loop import Progress, replayed, run_search
from tracenas.strategies.protocol import Batch
from tracenas.strategies.result import SearchResult, generations
from tracenas.strategies.score import Score
from tracenas.strategies.settings import Prior, SearchSettings
from tracenas.strategies.strategy import Strategy

__all__ = [
    "STRATEGIES",
    "Batch",
    "Prior",
    "Progress",
    "Score",
    "SearchResult",
    "SearchSettings",
    "Strategy",
    "generations",
    "replayed",
    "run_search",
]

STRATEGIES: Registry[type[Strategy[Any]]] = Registry(
    "strategy",
    {
        "evolution": "tracenas.strategies.evolution:Evolution",
        "guided": "tracenas.strategies.guided:Guided",
        "random": "tracenas.strategies.random:RandomSearch",
        "uniform": "tracenas.strategies.uniform:Uniform",
    },
)
