"""What a search starts from: which names `start` comes to, and what is refused."""

from typing import Any

import pytest

from tracenas.commands.search.settings import check_starts, resolve_search, sized
from tracenas.config import SearchConfig
from tracenas.errors import UserError
from tracenas.saliency.starts import DEFAULT_STARTS, SOLVED, STARTS


class Decoder:
    """As much of a model's source as resolving needs."""

    is_encoder_decoder = False

    def require_decoder(self, feature: str) -> None:
        """Every decoder has everything."""


class EncoderDecoder(Decoder):
    is_encoder_decoder = True


def resolved(source: Any = None, **settings: Any) -> SearchConfig:
    given = SearchConfig(**{"model": "m", "data": "d", "params": "60%", "out": "o", **settings})
    config = sized(resolve_search(given, source or Decoder()))
    check_starts(config)
    return config


@pytest.mark.parametrize(
    ("settings", "starts", "init"),
    [
        ({}, ("fisher", "mlp", "uniform"), "start"),
        ({"proxy": "kl"}, ("fisher", "mlp", "uniform"), "start"),
        ({"proxy": "phi"}, ("uniform",), "importance"),
        ({"source": EncoderDecoder()}, ("uniform",), "importance"),
        ({"proxy": "phi", "start": "fisher,mlp"}, ("fisher", "mlp"), "importance"),
        ({"start": ["mlp", "fisher"]}, ("mlp", "fisher"), "start"),
        ({"start": " fisher, fisher ,"}, ("fisher",), "start"),
        ({"start": "none"}, (), "uniform"),
        ({"start": "none", "proxy": "phi"}, (), "importance"),
        ({"strategy": "random"}, ("fisher", "mlp", "uniform"), "uniform"),
        ({"strategy": "uniform"}, (), "uniform"),
        ({"strategy": "evolution"}, ("fisher", "mlp", "uniform"), "importance"),
        ({"population": 2, "elites": 1}, ("fisher", "mlp"), "start"),
        ({"population": 2, "elites": 1, "init": "importance"}, ("fisher",), "importance"),
        ({"include_uniform": False}, ("fisher", "mlp"), "start"),
        ({"include_uniform": False, "proxy": "phi"}, (), "importance"),
        ({"include_uniform": True, "start": "none", "proxy": "phi"}, ("uniform",), "importance"),
    ],
)
def test_starts_and_what_the_population_is_anchored_on(
    settings: dict[str, Any], starts: tuple[str, ...], init: str
) -> None:
    config = resolved(**settings)
    assert config.starts == starts
    assert config.init == init


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start": "fischer"}, r"unknown start 'fischer': did you mean 'fisher'\? accepted: fisher, mlp, uniform"),
        ({"start": "mlp,none"}, "unknown start 'none'"),
        ({"start": ","}, "start ',': accepted: auto, none, or some of fisher, mlp, uniform"),
        ({"start": "fisher", "strategy": "evolution", "proxy": "loss", "init": "start", "population": 2}, None),
        ({"start": "none", "init": "start"}, "init start needs a start"),
        ({"start": "fisher,mlp", "init": "uniform", "population": 2}, "start: 2 architectures, .* room for 1"),
    ],
)
def test_what_is_refused(settings: dict[str, Any], message: str | None) -> None:
    if message is None:
        resolved(elites=1, **settings)
    else:
        with pytest.raises(UserError, match=message):
            resolved(elites=1, **settings)


def test_the_default_is_made_of_registered_starts() -> None:
    assert set(STARTS) == set(DEFAULT_STARTS) and set(DEFAULT_STARTS) > SOLVED
    assert all(callable(STARTS.get(name)) for name in STARTS)
