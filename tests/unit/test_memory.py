"""Passes that run out of memory: what they held is free before the next, and the user is told what would fit."""

import weakref
from typing import Any

import pytest
import torch
from proxy_setting import ProxySetting

from tracenas.errors import UserError
from tracenas.models.functionals.memory import attempt, within_memory
from tracenas.scoring.evaluator import ScoringSettings
from tracenas.scoring.measuring import Measurer

CPU = torch.device("cpu")


class Activations:
    """Memory of a pass, as a weak reference can see it."""


def failing(held: list["weakref.ref[Activations]"]) -> Any:
    activations = Activations()
    held.append(weakref.ref(activations))
    raise torch.OutOfMemoryError("out of memory")


def test_a_failed_attempt_holds_nothing_when_memory_is_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[weakref.ref[Activations]] = []
    alive: list[object] = []
    monkeypatch.setattr("tracenas.models.functionals.memory._clear_memory", lambda _: alive.append(held[0]()))
    assert attempt(lambda: failing(held), CPU) == (None, "OutOfMemoryError: out of memory")
    assert alive == [None]


def test_cuda_memory_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    emptied: list[bool] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    attempt(lambda: failing([]), CPU)
    assert not emptied
    attempt(lambda: failing([]), torch.device("cuda"))
    assert emptied


def test_a_cycle_of_a_failed_pass_is_collected() -> None:
    held: list[weakref.ref[Activations]] = []

    def work() -> None:
        activations = Activations()
        activations.itself = activations  # type: ignore[attr-defined]
        held.append(weakref.ref(activations))
        raise RuntimeError("shapes")

    attempt(work, CPU)
    assert held[0]() is None


def test_other_faults_are_not_swallowed() -> None:
    with pytest.raises(KeyError):
        attempt(lambda: {}["weights"], CPU)
    with pytest.raises(RuntimeError, match="shapes"):
        within_memory(_shapes, lambda _: 0, what="pass", micro_batch=4, device=CPU)


def _shapes() -> None:
    raise RuntimeError("shapes cannot be multiplied")


@pytest.fixture(scope="module")
def setting() -> ProxySetting:
    return ProxySetting("llama")


def test_a_panel_retries_after_the_failed_pass_is_gone(setting: ProxySetting, monkeypatch: pytest.MonkeyPatch) -> None:
    panel = setting.panel(["loss", "grad_norm"], ScoringSettings(rank=4, micro_batch=2))
    held: list[weakref.ref[Activations]] = []
    alive: list[object] = []

    def measure(*_: Any) -> Any:
        alive.extend(ref() for ref in held)
        return failing(held)

    monkeypatch.setattr(panel.measurer, "measure", measure)
    scores = panel.measure(setting.architectures(1)[0])
    assert {s.reason for s in scores.values()} == {"OutOfMemoryError: out of memory"}
    assert len(held) == 3 and alive == [None] * 3


@pytest.mark.parametrize(("fitting", "told"), [(2, "--batch 2 fits"), (0, "nor do smaller ones fit")])
def test_the_bases_own_pass_says_what_would_fit(
    setting: ProxySetting, fitting: int, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Measurer._nll

    def limited(self: Measurer, model: Any, batch: torch.Tensor, *args: Any) -> torch.Tensor:
        if len(batch) > fitting:
            raise torch.OutOfMemoryError("out of memory")
        return run(self, model, batch, *args)

    monkeypatch.setattr(Measurer, "_nll", limited)
    with pytest.raises(UserError, match=f"batches of 4.*{told}"):
        setting.evaluator("loss", ScoringSettings(rank=4, micro_batch=4))
