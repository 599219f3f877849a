"""The registry of proxies: each of them scores, shares passes, runs no backward pass without need, fails alone."""

import math
import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from proxy_setting import ProxySetting

from tracenas.models.surgery.supernet import Realisation, Supernet
from tracenas.proxies import PROXIES, Measurement, Proxy, Undefined, WeightSums
from tracenas.proxies.measurement import NEEDS
from tracenas.scoring.evaluator import Evaluator, ScoringSettings
from tracenas.scoring.observers.observer import spread
from tracenas.scoring.observers.weight_gradients import _ratio
from tracenas.scoring.panel import Panel, PanelResult

NAMES = PROXIES.names()
FREE = [name for name in NAMES if not PROXIES.get(name).backward]
ADDITIVE = ["kl", "kl_compensated", "loss", "loss_compensated"]
SETTINGS = ScoringSettings(rank=4, seed=0, micro_batch=2)


@pytest.fixture(scope="module")
def setting() -> ProxySetting:
    return ProxySetting("llama")


def test_indices_are_spread_evenly() -> None:
    assert spread(10, 4, torch.device("cpu")).tolist() == [1, 3, 6, 8]
    assert spread(3, 5, torch.device("cpu")).tolist() == [0, 1, 2]


def test_coordinates_in_which_two_gradients_agree_have_no_ratio() -> None:
    assert _ratio(torch.tensor([1.0, 2.0, 0.0]), torch.tensor([1.0, -4.0, 0.0])).item() == 1.0


@pytest.mark.parametrize("name", NAMES)
def test_entries(name: str) -> None:
    proxy = PROXIES.get(name)
    assert proxy.name == name
    assert proxy.needs <= set(NEEDS)
    assert proxy.reference and proxy.cost
    assert proxy.additive == (name in ADDITIVE)


def test_an_unknown_need_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown need 'gradients'; known: trace"):
        Proxy("mine", lambda m: m.loss, needs=frozenset({"gradients"}))


@pytest.mark.parametrize("changes", [{}, {"num_key_value_heads": 4}, {"tie_word_embeddings": True}])
@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_every_proxy_scores_every_architecture(family: str, changes: dict[str, Any]) -> None:
    setting = ProxySetting(family, **changes)
    panel = setting.panel(NAMES, SETTINGS)
    for arch in setting.architectures(3):
        for name, score in panel.measure(arch).items():
            assert score.reason is None, name
            assert score.value is not None and math.isfinite(score.value)


@pytest.fixture(scope="module")
def results(setting: ProxySetting) -> dict[Any, PanelResult]:
    panel = setting.panel(NAMES, SETTINGS)
    return {arch: panel.run(arch) for arch in setting.architectures(3)}


@pytest.mark.parametrize("name", NAMES)
def test_a_panel_gives_what_the_search_scores_by(
    setting: ProxySetting, results: dict[Any, PanelResult], name: str
) -> None:
    evaluator = setting.evaluator(name, SETTINGS)
    for arch, result in results.items():
        score = evaluator.score(arch)
        # a pass with a gradient or a watch takes whole rows of logits, others take tiles
        assert result.scores[name].value == pytest.approx(score.score, rel=1e-6)
        if not PROXIES.get(name).runs:
            assert score.loss is None
            continue
        measured = result.compensated if "compensated" in PROXIES.get(name).needs else result.plain
        assert measured is not None and measured.loss == pytest.approx(score.loss, rel=1e-6)


@pytest.mark.parametrize("name", FREE)
def test_no_backward_pass_without_need(setting: ProxySetting, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator, arch = setting.evaluator(name, SETTINGS), setting.architectures(3)[2]
    expected = evaluator.score(arch).score
    _forbid_backward(monkeypatch)
    assert evaluator.score(arch).score == expected


def test_no_backward_pass_for_all_of_them_together(setting: ProxySetting, monkeypatch: pytest.MonkeyPatch) -> None:
    panel, arch = setting.panel(FREE, SETTINGS), setting.architectures(3)[2]
    expected = panel.measure(arch)
    _forbid_backward(monkeypatch)
    assert {n: s.value for n, s in panel.measure(arch).items()} == {n: s.value for n, s in expected.items()}


def test_that_would_be_noticed(setting: ProxySetting, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = setting.evaluator("phi", SETTINGS)
    _forbid_backward(monkeypatch)
    assert "backward" in str(evaluator.score(setting.architectures(3)[2]).reason)


def _forbid_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any, **__: Any) -> None:
        raise RuntimeError("backward")

    monkeypatch.setattr(torch.autograd, "backward", forbidden)
    monkeypatch.setattr(torch.Tensor, "backward", forbidden)


def test_a_panel_runs_one_pass_per_realisation(setting: ProxySetting, monkeypatch: pytest.MonkeyPatch) -> None:
    panel = setting.panel([n for n in NAMES if not n.startswith("few_steps")], SETTINGS)
    realised = []
    original = Supernet.realise

    def count(self: Supernet, arch: Any, how: Any = None) -> Any:
        realised.append(type(how))
        return original(self, arch, how)

    monkeypatch.setattr(Supernet, "realise", count)
    panel.measure(setting.architectures(3)[2])
    assert realised == [Realisation, type(setting.how)]


def test_seconds_are_those_of_the_pass_and_of_the_score(setting: ProxySetting) -> None:
    panel = setting.panel(["loss", "grad_norm"], SETTINGS)
    started = time.perf_counter()
    scores = panel.run(setting.architectures(1)[0]).scores
    elapsed = time.perf_counter() - started
    assert all(0 < score.seconds < elapsed for score in scores.values())


def test_a_failing_proxy_does_not_lose_the_others(setting: ProxySetting) -> None:
    def undefined(_: Measurement) -> float:
        raise Undefined("no reason")

    odd = [
        Proxy("nan", lambda _: math.nan),
        Proxy("undefined", undefined),
        Proxy("zero", lambda _: 1 / 0),
    ]
    panel = Panel(setting.net, setting.space, setting.tokens, [*odd, PROXIES.get("loss")], SETTINGS)
    scores = panel.measure(setting.architectures(3)[2])
    assert [scores[p.name].reason for p in odd] == [
        "loss or score is not finite",
        "no reason",
        "ZeroDivisionError: division by zero",
    ]
    assert scores["loss"].value is not None


def test_a_failing_pass_is_run_again_for_each_proxy(setting: ProxySetting, monkeypatch: pytest.MonkeyPatch) -> None:
    panel = setting.panel(["loss", "phi", "kl"], SETTINGS)
    arch = setting.architectures(3)[2]
    expected = panel.measure(arch)
    original = panel.measurer.measure

    def no_memory(arch: Any, how: Any, needs: Any) -> Measurement:
        if "trace" in needs:
            raise RuntimeError("out of memory")
        return original(arch, how, needs)

    monkeypatch.setattr(panel.measurer, "measure", no_memory)
    scores = panel.measure(arch)
    assert scores["phi"].value is None and scores["phi"].reason == "RuntimeError: out of memory"
    assert all(scores[name].value == pytest.approx(expected[name].value, rel=1e-6) for name in ("loss", "kl"))


def test_what_a_family_cannot_give_is_said() -> None:
    setting = ProxySetting("mixtral")
    scores = setting.panel(NAMES, SETTINGS).measure(setting.architectures(3)[2])
    failed = {name for name, score in scores.items() if score.value is None}
    assert failed == {"lp_zero", "naswot", "pruner_zero", "synaptic_saliency", "zico"}
    assert all("fused experts" in str(scores[name].reason) for name in failed)
    assert "fused experts" in str(setting.evaluator("zico", SETTINGS).score(setting.architectures(3)[2]).reason)


def test_one_sequence_is_too_few_for_some() -> None:
    setting = ProxySetting("llama", sequences=1)
    scores = setting.panel(["zico", "few_steps", "naswot", "loss"], SETTINGS).measure(setting.architectures(3)[2])
    assert scores["zico"].reason == scores["few_steps"].reason == "two calibration sequences are needed"
    assert scores["loss"].value is not None


def test_without_sub_blocks_left(setting: ProxySetting) -> None:
    nothing = setting.space.build([[0, 0]] * len(setting.blocks))
    scores = setting.panel(["meco", "zico", "naswot", "lp_zero", "kl"], SETTINGS).measure(nothing)
    assert {n for n, s in scores.items() if s.value is None} == {"meco", "zico", "naswot", "lp_zero"}
    assert scores["meco"].reason == "no sub-block is left"


def test_equal_codes_are_undefined() -> None:
    setting = ProxySetting("llama")
    setting.tokens[1] = setting.tokens[0]
    scores = setting.panel(["naswot"], SETTINGS).measure(setting.architectures(3)[2])
    assert scores["naswot"].reason == "the kernel of activation codes is singular"


@pytest.mark.parametrize("name", ADDITIVE)
def test_additive_proxies_sequence_by_sequence(setting: ProxySetting, name: str) -> None:
    evaluator, arch = setting.evaluator(name, SETTINGS), setting.architectures(3)[2]
    of_part = evaluator.proxy.terms
    assert of_part is not None
    readings = evaluator.measurer.stream(arch, evaluator.realisation, evaluator.proxy.needs, evaluator.pieces)
    parts = [of_part(reading.measurement) for reading in readings]
    assert [len(p) for p in parts] == [2, 2, 1]
    terms = [t for part in parts for t in part]
    assert -sum(terms) / 5 == pytest.approx(evaluator.score(arch).score, rel=1e-6)
    assert tuple(terms) == of_part(evaluator.measure(arch))


def test_a_stopped_stream_leaves_the_base_as_it_was(setting: ProxySetting) -> None:
    evaluator = setting.evaluator("loss", SETTINGS)
    arch = setting.architectures(3)[2]
    stream = evaluator.measurer.stream(arch, evaluator.realisation, evaluator.proxy.needs, evaluator.pieces)
    next(stream)
    stream.close()
    assert evaluator.score(setting.space.base).score == pytest.approx(-evaluator.base_loss, abs=1e-6)


def test_higher_is_better() -> None:
    """A worse measurement in the one respect that a proxy looks at never scores higher."""
    good = Measurement(100, 2.0, losses=(2.0,), kls=(0.1,), alignment=(0.9,), recovered=(1.5,))
    bad = Measurement(90, 3.0, losses=(3.0,), kls=(0.4,), alignment=(0.2,), recovered=(2.5,))
    losses = ("loss", "loss_compensated", "kl", "kl_compensated", "few_steps", "few_steps_compensated")
    for name in (*losses, "hidden_alignment", "num_params"):
        assert PROXIES.get(name).score(good) > PROXIES.get(name).score(bad), name
    assert PROXIES.get("fisher").score(replace(good, rise=0.1)) > PROXIES.get("fisher").score(replace(bad, rise=0.3))
    weights = WeightSums(squares=1.0, saliency=2.0, scaled=3.0, softmax=4.0, ratios=(5.0,))
    base = replace(good, weights={(0, "a"): weights})
    for name, field in (("synaptic_saliency", "saliency"), ("pruner_zero", "scaled"), ("lp_zero", "softmax")):
        more = replace(base, weights={(0, "a"): replace(weights, **{field: 10.0})})
        assert PROXIES.get(name).score(more) > PROXIES.get(name).score(base), name
    more = replace(base, weights={(0, "a"): replace(weights, ratios=(6.0,))})
    assert PROXIES.get("zico").score(more) > PROXIES.get("zico").score(base)


def test_predicted_rises_are_read_without_running_a_candidate(
    setting: ProxySetting, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator, panel = setting.evaluator("fisher", SETTINGS), setting.panel(["fisher"], SETTINGS)
    together = setting.panel(["loss", "fisher"], SETTINGS)
    arch = setting.architectures(3)[1]
    value = together.measure(arch)["fisher"].value

    def refused(*_: Any) -> None:
        raise AssertionError("a candidate was run")

    monkeypatch.setattr(setting.net, "realise", refused)
    score, result = evaluator.score(arch), panel.run(arch)
    assert score.score == result.scores["fisher"].value == value
    assert (score.loss, result.plain, result.compensated) == (None, None, None)


def test_a_proxy_may_read_the_table_beside_a_pass(setting: ProxySetting) -> None:
    both = Proxy("both", lambda m: m.loss + 1000 * (m.rise or 0.0), frozenset({"sensitivity"}) | {"hidden"})
    panel = Panel(setting.net, setting.space, setting.tokens, [both], SETTINGS, table=setting.table)
    alone = setting.panel(["loss", "fisher"], SETTINGS)
    arch = setting.architectures(3)[2]
    expected = {name: score.value for name, score in alone.measure(arch).items()}
    assert expected["loss"] is not None and expected["fisher"] is not None
    found = panel.measure(arch)["both"].value
    assert found == pytest.approx(-expected["loss"] - 1000 * expected["fisher"])


def test_the_same_name_twice(setting: ProxySetting) -> None:
    with pytest.raises(ValueError, match="different names"):
        setting.panel(["loss", "loss"], SETTINGS)
    with pytest.raises(ValueError, match="needs a compensated realisation"):
        Panel(setting.net, setting.space, setting.tokens, [PROXIES.get("kl_compensated")], SETTINGS)
    with pytest.raises(ValueError, match="needs a sensitivity table"):
        Panel(setting.net, setting.space, setting.tokens, [PROXIES.get("fisher")], SETTINGS)


def test_bf16() -> None:
    setting = ProxySetting("llama")
    setting.net.model.to(torch.bfloat16)
    scores = setting.panel([n for n in NAMES if "compensated" not in PROXIES.get(n).needs], SETTINGS)
    exact = ProxySetting("llama").panel(["loss", "kl", "few_steps"], SETTINGS)
    arch = setting.architectures(3)[2]
    found = scores.measure(arch)
    assert all(s.value is not None for s in found.values())
    for name, score in exact.measure(arch).items():
        assert found[name].value == pytest.approx(score.value, rel=0.1)
    evaluator = Evaluator(setting.net, setting.space, setting.tokens, PROXIES.get("kl"), SETTINGS)
    assert evaluator.score(setting.space.base).score == pytest.approx(0.0, abs=1e-6)
