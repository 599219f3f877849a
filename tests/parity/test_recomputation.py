"""Activations computed again in the backward pass: the same scores, in every bit."""

from dataclasses import replace

import pytest
from proxy_setting import ProxySetting

from tracenas.scoring.evaluator import ScoringSettings

pytestmark = pytest.mark.parity

UNMEASURED = ("mixtral",)
"""Whole gradients of fused experts are not taken."""

KEPT = ScoringSettings(8, 0, 2)


MORE = [pytest.param(family, marks=pytest.mark.slow) for family in ("gemma2", "mixtral", "phi3", "gpt_neox")]


@pytest.mark.parametrize("family", ["llama", "t5", *MORE])
@pytest.mark.parametrize("proxy", ["phi", "pruner_zero"])
def test_scores_are_the_same(family: str, proxy: str) -> None:
    setting = ProxySetting(family)
    again = setting.evaluator(proxy, replace(KEPT, recompute=True))
    kept = setting.evaluator(proxy, KEPT)
    for arch in setting.architectures(4):
        expected, found = kept.score(arch), again.score(arch)
        assert found.ok == (proxy == "phi" or family not in UNMEASURED)
        assert (found.score, found.loss, found.reason) == (expected.score, expected.loss, expected.reason)


def test_blocks_that_are_there_run_twice() -> None:
    setting = ProxySetting("llama")
    evaluator = setting.evaluator("phi", replace(KEPT, recompute=True))
    skipped, *_ = setting.architectures(1)
    runs = dict.fromkeys(range(len(setting.blocks)), 0)
    hooks = [
        setting.net.model.get_submodule(f"{block.path}.mlp.gate_proj").register_forward_hook(
            lambda *_, index=index: runs.__setitem__(index, runs[index] + 1)
        )
        for index, block in enumerate(setting.blocks)
    ]
    try:
        assert evaluator.score(skipped).ok
    finally:
        for hook in hooks:
            hook.remove()
    batches = -(-len(setting.tokens) // KEPT.micro_batch)
    assert runs == {index: 0 if layer.skip else 2 * batches for index, layer in enumerate(skipped.layers)}
