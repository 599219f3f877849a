import pytest
import toys
from hypothesis import given, settings
from hypothesis import strategies as st

from tracenas.errors import UserError
from tracenas.space import Architecture, Layer

COUNTS = st.integers(0, 10_000)


@st.composite
def architectures(draw: st.DrawFn) -> Architecture:
    keys = draw(st.sampled_from([("heads", "channels"), ("kv_heads", "channels")]))
    rows = draw(st.lists(st.tuples(COUNTS, COUNTS), min_size=1, max_size=6).filter(lambda r: any(map(any, r))))
    return Architecture(tuple(Layer(tuple(zip(keys, row, strict=True))) for row in rows))


@given(architectures())
@settings(max_examples=60, deadline=None)
def test_json_round_trip(arch: Architecture) -> None:
    again = Architecture.from_json(arch.to_json())
    assert again == arch
    assert hash(again) == hash(arch)
    assert again.id == arch.id


def test_encoder_decoder_round_trip() -> None:
    data = {
        "encoder": {"layers": [{"heads": 4, "channels": 64}, {"skip": True}]},
        "decoder": {"layers": [{"heads": 4, "cross_heads": 2, "channels": 64}]},
    }
    arch = Architecture.from_json(data)
    assert arch.to_json() == data
    assert [layer.stack for layer in arch.layers] == ["encoder", "encoder", "decoder"]
    assert arch.layers[2]["cross_heads"] == 2


def test_skipped_and_half_skipped_layers() -> None:
    data = {"layers": [{"heads": 4, "channels": 256}, {"heads": 0, "channels": 512}, {"skip": True}]}
    arch = Architecture.from_json(data)
    assert [layer.skip for layer in arch.layers] == [False, False, True]
    assert arch.layers[2].kept == (("heads", 0), ("channels", 0))
    assert arch.to_json() == data
    all_zero = {"layers": [*data["layers"][:2], {"heads": 0, "channels": 0}]}
    assert Architecture.from_json(all_zero) == arch


def test_best_json_holds_one() -> None:
    best = {"architecture": {"layers": [{"heads": 4, "channels": 64}]}, "score": 1.5, "provenance": {}}
    assert Architecture.from_json(best).layers[0]["heads"] == 4


def test_id_is_stable_across_processes_and_versions() -> None:
    arch = Architecture.from_json({"layers": [{"heads": 4, "channels": 256}, {"skip": True}]})
    assert arch.id == "b4674957b549cbae"
    assert arch.id != Architecture.from_json({"layers": [{"heads": 4, "channels": 224}, {"skip": True}]}).id


def test_key_order_of_the_file_does_not_matter() -> None:
    one = Architecture.from_json({"layers": [{"channels": 256, "heads": 4}]})
    other = Architecture.from_json({"layers": [{"heads": 4, "channels": 256}]})
    assert one == other
    assert one.id == other.id


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "expected a JSON object"),
        ({}, "no 'layers'"),
        ({"layers": []}, "non-empty list"),
        ({"layers": "x"}, "non-empty list"),
        ({"layers": [3]}, "layer 0: expected an object"),
        ({"layers": [{"heads": 1, "channels": 32}], "depth": 1}, "unknown key 'depth'"),
        ({"layers": [{"heads": 1, "channels": 32}, {"head": 1}]}, "layer 1: unknown key 'head'"),
        ({"layers": [{"heads": -1, "channels": 32}]}, "'heads' must be a whole number"),
        ({"layers": [{"heads": 1.5, "channels": 32}]}, "'heads' must be a whole number"),
        ({"layers": [{"heads": True, "channels": 32}]}, "'heads' must be a whole number"),
        ({"layers": [{"heads": 1, "channels": 32}, {"heads": 1}]}, "layer 1 lacks 'channels'"),
        ({"layers": [{"skip": True}]}, "every layer is skipped"),
        ({"layers": [{"skip": 1, "heads": 0}]}, "'skip' must be true or false"),
        ({"layers": [{"skip": True, "heads": 3}]}, "skipped, but keeps units"),
        ({"layers": [{"skip": False}]}, "neither counts nor skip"),
        ({"encoder": {"layers": [{"heads": 1}]}, "middle": {}}, "unknown key 'middle'"),
        ({"encoder": [1]}, "'encoder' must be an object"),
        ({"decoder": {"layers": [{"heads": "1"}]}}, "layer 0 of the decoder"),
    ],
)
def test_malformed_architectures_are_named(data: object, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        Architecture.from_json(data, where="arch.json")
    assert str(error.value).startswith("arch.json")
    assert "\n" not in str(error.value)


def test_validate_brings_an_architecture_into_the_spaces_form() -> None:
    space = toys.space(None, layers=2, heads=8, groups=4, channels=100)
    arch = Architecture.from_json({"layers": [{"heads": 4, "channels": 100}, {"skip": True}]})
    assert space.validate(arch) == arch


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([{"heads": 4, "channels": 64}], "1 layers, but the model has 2 blocks"),
        (
            [{"heads": 4, "channels": 64}, {"heads": 3, "channels": 64}],
            "layer 1: 3 heads cannot be kept of 8",
        ),
        (
            [{"heads": 4, "channels": 33}, {"skip": True}],
            "layer 0: 33 channels .* multiples of 32 from 32 up",
        ),
        ([{"heads": 4, "channels": 128}, {"skip": True}], "layer 0: 128 channels cannot be kept of 100"),
        ([{"kv_heads": 4, "channels": 64}, {"skip": True}], "layer 0: no 'heads'"),
        ([{"heads": 4, "cross_heads": 4, "channels": 64}, {"skip": True}], "'cross_heads' is no count"),
    ],
)
def test_validate_refuses_what_the_model_cannot_be(layers: list[object], message: str) -> None:
    space = toys.space(None, layers=2, heads=8, groups=4, channels=100)
    with pytest.raises(UserError, match=message):
        space.validate(Architecture.from_json({"layers": layers}))
