"""Scorers that go to other processes without their model."""

import numpy as np
import torch
from proxy_setting import ProxySetting
from tiny import tiny_model

from tracenas.models.surgery.supernet import Supernet
from tracenas.proxies import PROXIES
from tracenas.scoring.evaluator import Evaluator, ScoringSettings
from tracenas.scoring.raced import RacingEvaluator
from tracenas.scoring.travelling import packed, unpacked


def test_a_scorer_on_another_copy_of_the_model_gives_the_same_scores() -> None:
    here = ProxySetting("llama")
    settings = ScoringSettings(rank=4, seed=3, micro_batch=2)
    scorer = RacingEvaluator(
        Evaluator(here.net, here.space, here.tokens, PROXIES.get("loss_compensated"), settings, here.how), 2
    )
    there = Supernet(tiny_model("llama"), here.blocks, here.ordering)
    arch = here.space.mutate(here.space.base, np.random.default_rng(5), depth=0.3, width=0.9)
    copy = unpacked(packed(scorer, here.net), there)
    assert copy.evaluator.net is there
    assert copy.score(arch).extra == scorer.score(arch).extra


def test_a_parcel_holds_no_weights_and_keeps_strides() -> None:
    here = ProxySetting("llama")
    scorer = Evaluator(here.net, here.space, here.tokens, PROXIES.get("loss_compensated"), ScoringSettings(), here.how)
    parcel = packed(scorer, here.net)
    weights = sum(p.numel() * p.element_size() for p in here.net.model.parameters())
    carried = sum(b.nbytes for b in parcel.buffers) + len(parcel.structure)
    assert here.how.factor_bytes < carried < here.how.factor_bytes + weights // 2
    factors = [(f.inverse, f.mixed) for f in here.how._factors.values()]
    copies = [(f.inverse, f.mixed) for f in unpacked(parcel, here.net).realisation._factors.values()]
    for (a, b), (c, d) in zip(factors, copies, strict=True):
        assert a.stride() == c.stride() and torch.equal(a, c)
        assert b.stride() == d.stride() and torch.equal(b, d)
