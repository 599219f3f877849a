"""A model in a serving program: what is asked of every such program, and what it answers.

    {"model": PATH, …, "runs": [{"batch": 1, "prompt": 512, "before": 504, "new_tokens": 16}]}
    → {"runs": [{"prefill": 0.8, "decode": 0.2}], "bytes": {…}}

Seconds of a prefill of the prompt, and of the tokens behind the first of `new_tokens` that are decoded behind `before`
ones, of `batch` sequences at once. `bytes` is what the program says that it holds, nothing where it does not say.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from tracenas.benchmark.latency import Trial, TrialSettings
from tracenas.benchmark.served import Served

__all__ = ["Run", "ServedModel"]


class Run(TypedDict):
    """A prefill and a decoding."""

    batch: int
    prompt: int
    before: int
    new_tokens: int


class ServedModel:
    """A program that is asked of one model.

    Args:
        program: answers.
        request: what is said beside the runs: the model, and how it is served.
    """

    def __init__(self, program: Served, request: Mapping[str, Any]) -> None:
        self.program, self._request = program, request

    def ask(self, runs: Sequence[Run]) -> dict[str, Any]:
        """What runs take; a model that is not in memory is loaded before."""
        return self.program.ask({**self._request, "runs": list(runs)})

    def trial(self, settings: TrialSettings) -> Trial:
        """A prompt, and tokens behind it."""
        prompt, batch = settings.prompt, settings.batch_size
        run: Run = {"batch": batch, "prompt": prompt, "before": prompt, "new_tokens": settings.new_tokens}
        answer = self.ask([run])
        (found,) = answer["runs"]
        return Trial(found["prefill"], found["decode"], sum(answer["bytes"].values()))
