"""Latency tables that are interrupted: their turns end by Ctrl-C at a given place, once."""

from typing import Any

import pytest

__all__ = ["interrupt_turns"]


def interrupt_turns(monkeypatch: pytest.MonkeyPatch, turns: Any, at: int) -> list[list[str]]:
    """Have the `at`-th call of the class `turns` interrupted; returns what every call was asked for, as they come."""
    real, asked = turns.__call__, list[list[str]]()

    def few(self: Any, archs: Any, advance: Any) -> Any:
        asked.append([arch.id for arch in archs])
        if len(asked) == at:
            raise KeyboardInterrupt
        return real(self, archs, advance)

    monkeypatch.setattr(turns, "__call__", few)
    return asked
