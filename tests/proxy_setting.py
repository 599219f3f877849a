"""A tiny model as super-network beside an untouched float64 copy, for tests of the proxies."""

import json
from functools import cached_property
from typing import Any

import numpy as np
import torch
from tiny import tiny_model

from tracenas.families import Options, config_family
from tracenas.models.surgery.ordering import Ordering
from tracenas.models.surgery.supernet import Supernet
from tracenas.proxies import PROXIES
from tracenas.refits.gram import gram_matrices
from tracenas.refits.realisation import CompensatedRealisation
from tracenas.saliency.sensitivity.table import SensitivityTable, WidthCosts
from tracenas.scoring.evaluator import Evaluator, ScoringSettings
from tracenas.scoring.panel import Panel
from tracenas.space.architecture import Architecture
from tracenas.space.search_space import SearchSpace


def draw(count: int, length: int, seed: int) -> torch.Tensor:
    """Random token ids."""
    return torch.randint(1, 257, (count, length), generator=torch.Generator().manual_seed(seed))


class ProxySetting:
    """Everything that a panel wants.

    Args:
        family: of the tiny model.
        sequences, length: of the calibration.
    """

    def __init__(self, family: str, *, sequences: int = 5, length: int = 24, **changes: Any) -> None:
        self.reference = tiny_model(family, **changes).double()
        model = tiny_model(family, **changes)
        config = json.loads(model.config.to_json_string())
        self.blocks = config_family(config).blocks(config, Options())
        rng = np.random.default_rng(1)
        saliency = {
            (i, s.spec.name): torch.from_numpy(rng.random(s.spec.units))
            for i, b in enumerate(self.blocks)
            for s in b.sub_blocks
            if s.spec.units
        }
        self.ordering = Ordering.from_saliency(self.blocks, saliency)
        self.net = Supernet(model, self.blocks, self.ordering)
        specs = tuple(b.spec for b in self.blocks)
        self.space = SearchSpace(specs, config_family(config).outside(config), None, "sublayer")
        costs = {}
        for i, name in saliency:
            spec = next(s for s in specs[i].sub_blocks if s.name == name)
            widths = np.array([0, *spec.choices()])
            costs[i, name] = WidthCosts(rng.random(spec.units), widths, np.append(rng.random(len(widths) - 1), 0.0))
        self.table = SensitivityTable(costs)
        self.tokens = draw(sequences, length, 0)
        self._text = draw(6, length, 1)

    @cached_property
    def how(self) -> CompensatedRealisation:
        """Refits."""
        return CompensatedRealisation(self.net, gram_matrices(self.net.model, self.blocks, self._text, 2), 0.01)

    def architectures(self, count: int) -> list[Architecture]:
        """One with a skipped block, one without its first attention and last MLP, and random ones."""
        counts = self.space.counts(self.space.base)
        skipped = [[0] * len(row) if i == 1 else row for i, row in enumerate(counts)]
        partly = [list(row) for row in counts]
        partly[0][0] = partly[-1][-1] = 0
        rng = np.random.default_rng(0)
        random = [arch for _ in range(count) if (arch := self.space.sample(rng)) is not None]
        return [self.space.build(skipped), self.space.build(partly), *random][:count]

    def evaluator(self, name: str, settings: ScoringSettings) -> Evaluator:
        """Of one proxy."""
        proxy = PROXIES.get(name)
        how = self.how if "compensated" in proxy.needs else None
        return Evaluator(self.net, self.space, self.tokens, proxy, settings, how, self.table)

    def panel(self, names: list[str], settings: ScoringSettings) -> Panel:
        """Of several."""
        proxies = [PROXIES.get(name) for name in names]
        return Panel(self.net, self.space, self.tokens, proxies, settings, self.how, self.table)
