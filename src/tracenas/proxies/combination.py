"""A weighted sum of rank-normalised proxies: `loss_compensated=0.7,phi_compensated=0.3`. No torch.

score = Σ_k w_k Q_k(s_k) / Σ_k |w_k|, Q_k the empirical quantile of proxy k's value in a fixed pool of architectures. So
proxies of different units and spreads count by their weights alone.
"""

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tracenas.errors import UserError
from tracenas.proxies import PROXIES, Proxy

__all__ = ["Choice", "RankScale", "choose", "combined"]

_BEYOND = 0.5
"""How far beyond 0 and 1 the extrapolated quantiles may come."""


@dataclass(frozen=True)
class Choice:
    """What candidates are scored by: one proxy as it is, or several with weights.

    Args:
        text: as the user wrote it.
        weights: by proxy name; of a single proxy 1.
    """

    text: str
    weights: Mapping[str, float]

    @property
    def single(self) -> bool:
        """Whether it is one proxy's own value."""
        return "=" not in self.text

    @property
    def proxies(self) -> tuple[Proxy, ...]:
        """The proxies, in the order in which they were named."""
        return tuple(PROXIES.get(name) for name in self.weights)

    @property
    def needs(self) -> frozenset[str]:
        """All that any of them needs."""
        return frozenset[str]().union(*(p.needs for p in self.proxies))

    @property
    def additive(self) -> bool:
        """Whether the score is minus a mean over sequences."""
        return self.single and self.proxies[0].additive

    @property
    def compensated(self) -> bool:
        """Whether the result is compensated, as it is once one of the proxies sees compensated candidates."""
        return "compensated" in self.needs


def choose(text: str) -> Choice:
    """Parse a proxy's name, or `name=weight` separated by commas.

    Raises:
        UserError: for an unknown name (with a suggestion), a name given twice, or a weight that is no number.
    """
    parts = [part.strip() for part in text.split(",")]
    if len(parts) == 1 and "=" not in text:
        PROXIES.get(text)
        return Choice(text, {text: 1.0})
    weights: dict[str, float] = {}
    for part in parts:
        name, sign, weight = (x.strip() for x in part.partition("="))
        if not name or not sign:
            raise UserError(f"proxy '{text}': '{part}' has no weight; accepted: NAME, or NAME=WEIGHT,NAME=WEIGHT,…")
        PROXIES.get(name)
        if name in weights:
            raise UserError(f"proxy '{text}': '{name}' is given twice")
        weights[name] = _weight(text, name, weight)
    return Choice(text, weights)


def _weight(text: str, name: str, weight: str) -> float:
    try:
        value = float(weight)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value == 0:
        raise UserError(f"proxy '{text}': weight '{weight}' of '{name}' must be a number other than 0")
    return value


@dataclass(frozen=True)
class RankScale:
    """Empirical quantiles of a proxy's values in a pool: 0 at the lowest, 1 at the highest, linear in between.

    Equal values share the middle of their ranks. Beyond the ends the quantile goes on with the pool's mean slope and
    is bent so that it stays above -0.5 and below 1.5: better is always better, however far beyond the pool.

    Args:
        values: the pool's, finite, in any order.

    Raises:
        ValueError: if there are none.
    """

    values: Sequence[float]

    def __post_init__(self) -> None:
        if not self.values or not all(math.isfinite(v) for v in self.values):
            raise ValueError(f"a rank needs finite values, not {list(self.values)}")
        object.__setattr__(self, "values", tuple(sorted(self.values)))

    def __call__(self, value: float) -> float:
        """The quantile of a value."""
        low, high = self.values[0], self.values[-1]
        span = (high - low) or max(abs(high), 1.0)
        if value < low:
            return self._rank(low) - _bent((low - value) / span)
        if value > high:
            return self._rank(high) + _bent((value - high) / span)
        left = bisect.bisect_right(self.values, value)
        below = self.values[left - 1]
        if below == value:
            return self._rank(value)
        above = self.values[left]
        share = (value - below) / (above - below)
        return (1 - share) * self._rank(below) + share * self._rank(above)

    def _rank(self, value: float) -> float:
        """Of a value that is in the pool."""
        if len(self.values) == 1:
            return 0.5
        first, last = bisect.bisect_left(self.values, value), bisect.bisect_right(self.values, value) - 1
        return (first + last) / 2 / (len(self.values) - 1)


def _bent(distance: float) -> float:
    """0 at 0 with slope 1, rising towards `_BEYOND`."""
    return _BEYOND * distance / (_BEYOND + distance)


def combined(choice: Choice, scales: Mapping[str, RankScale], values: Mapping[str, float]) -> float:
    """Σ w·Q(value) / Σ|w|."""
    total = math.fsum(abs(w) for w in choice.weights.values())
    return math.fsum(w * scales[name](values[name]) for name, w in choice.weights.items()) / total
