"""Drawing candidates that were not seen before, each when it is asked for."""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from tracenas.strategies.ahead import Ahead
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
        self._left: deque[tuple[int, Callable[[], Proposal[C] | None]]] = deque()
        """Places that are to be filled, and what draws for them."""

    def __len__(self) -> int:
        self._draw_all()
        return len(self._proposals) + self._duplicates

    def offer(self, proposal: Proposal[C] | None) -> bool:
        """Take a proposal unless it was seen before."""
        self._draw_all()
        return self._taken(proposal)

    def _taken(self, proposal: Proposal[C] | None) -> bool:
        if proposal is None or proposal.candidate.id in self._seen:
            return False
        self._seen.add(proposal.candidate.id)
        self._proposals.append(proposal)
        return True

    def fill(self, places: int, draw: Callable[[], Proposal[C] | None]) -> None:
        """Draw until `places` are taken or counted as duplicates, once somebody wants to know."""
        self._left.append((places, draw))

    def _draw(self) -> bool:
        """Draw for one place; False if all are settled."""
        while self._left:
            places, draw = self._left[0]
            if len(self._proposals) + self._duplicates < places:
                if not any(self._taken(draw()) for _ in range(self._redraws + 1)):
                    self._duplicates += 1
                return True
            self._left.popleft()
        return False

    def _draw_all(self) -> None:
        while self._draw():
            pass

    def _drawn(self) -> Iterator[Proposal[C]]:
        """The proposals in order."""
        place = 0
        while place < len(self._proposals) or self._draw():
            if place < len(self._proposals):  # a duplicate adds none
                yield self._proposals[place]
                place += 1

    def batch(self, generation: int) -> Batch[C]:
        """What is drawn, in order."""
        return Batch(generation, Ahead(self._drawn()), lambda: self._duplicates)
