"""Statistics over a study's results: does a proxy order architectures as their measured quality does? No models."""

from tracenas.studies.correlation import Correlation, Estimate, correlate
from tracenas.studies.regrets import Regret, regret
from tracenas.studies.tables import StudyTarget, analyse, markdown

__all__ = [
    "Correlation",
    "Estimate",
    "Regret",
    "StudyTarget",
    "analyse",
    "correlate",
    "markdown",
    "regret",
]
