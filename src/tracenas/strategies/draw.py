"""Drawing candidates that were not seen before."""

from collections.abc import Callable
from typing import Generic, TypeVar

from tracenas.strategies.protocol import Batch, Candidate, Proposal

__all__ = ["Draws"]

C = TypeVar("C", bound=Candidate)


class Draws(Generic[C]):
    """Distinct proposals of one generation; `seen` holds the ids of all candidates ever proposed.

    Args:
        seen: is added to.
        redraws: how often a duplicate, or a draw without result, is drawn again before its place stays empty
            and is counted.
    """

    def __init__(self, seen: set[str], redraws: int) -> None:
        self._seen = seen
        self._redraws = redraws
        self._proposals: list[Proposal[C]] = []
        self._duplicates = 0

    def __len__(self) -> int:
        return len(self._proposals) + self._duplicates

    def offer(self, proposal: Proposal[C] | None) -> bool:
        """Take a proposal unless it was seen before."""
        if proposal is None or proposal.candidate.id in self._seen:
            return False
        self._seen.add(proposal.candidate.id)
        self._proposals.append(proposal)
        return True

    def fill(self, places: int, draw: Callable[[], Proposal[C] | None]) -> None:
        """Draw until `places` are taken or counted as duplicates."""
        while len(self) < places:
            if not any(self.offer(draw()) for _ in range(self._redraws + 1)):
                self._duplicates += 1

    def batch(self, generation: int) -> Batch[C]:
        """What was drawn, in order."""
        return Batch(generation, tuple(self._proposals), self._duplicates)
