"""Losses of architectures on several texts, refitted as a run's search refits its candidates."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from closed_form import losses
from strategies import texts

from tracenas.commands.search.settings import resolve_search, sized
from tracenas.config import SearchConfig
from tracenas.errors import UserError
from tracenas.models.checkpoints.source import open_source
from tracenas.pipeline.one_shot import allocate_budget, rank_units
from tracenas.pipeline.opening import open_session
from tracenas.pipeline.refit.text import compensation_text
from tracenas.pipeline.scoring import make_evaluator
from tracenas.pipeline.target import resolve_target
from tracenas.space.architecture import Architecture

__all__ = ["HeldOut"]


class HeldOut:
    """What architectures of a model are worth on text that a search has not seen, beside what it has.

    Args:
        settings: of the search, as `tracenas.search` takes them; the budget is of no account.
        run: its directory.
        evaluation: `NAME=TEXT` of every text, windows of each, and their tokens.
    """

    def __init__(self, settings: Mapping[str, Any], run: Path, evaluation: tuple[list[str], int, int]) -> None:
        self._source = open_source(settings["model"])
        asked = SearchConfig(out=run, **settings)
        self._config = sized(resolve_search(asked, self._source))
        self._fine = self._config.model_copy(update={"channel_quantum": 8})
        target = resolve_target(self._source, self._fine)
        session = self._session = open_session(target, self._fine, data=self._config.data, run=run)
        tokens = compensation_text(session).tokens
        self._flap = rank_units(session.target, session.loaded, "flap", tokens, session.micro_batch)
        self._evaluator = make_evaluator(session, self._config.proxy, 0)
        self._texts = {"search": session.tokens, **texts(session.loaded.tokenizer, *evaluation)}

    def one_shot(self, allocation: str, size: str) -> dict[str, Any]:
        """The architecture of a one-shot method at a size, None where it has none there."""
        config = self._fine if allocation == "mlp" else self._config
        target = resolve_target(self._source, config, params=size, tolerance=config.tolerance)
        session = self._session
        ordering, importance = self._flap if allocation == "global_units" else (session.ordering, session.importance)
        try:
            arch = allocate_budget(target, ordering, importance, allocation, None).architecture
        except UserError:
            return {"architecture": None}
        return {"architecture": arch.to_json()}

    def measured(self, architecture: Any) -> dict[str, Any]:
        """Losses of every window, and the share of the parameters that is left."""
        arch, space = Architecture.from_json(architecture, where="cell"), self._session.space
        with self._session.supernet().realise(arch, self._evaluator.realisation) as model:
            found = losses(model, self._texts)
        return {"id": arch.id, "losses": found, "share": space.parameters(arch) / space.parameters(space.base)}
