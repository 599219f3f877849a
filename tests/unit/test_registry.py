import sys
from importlib.metadata import EntryPoint

import pytest

from tracenas import registry as module
from tracenas.errors import UserError
from tracenas.registry import Registry, did_you_mean


def colours(**builtin: str) -> Registry[object]:
    return Registry("colour", {"rgb": "colorsys:rgb_to_hsv", "hls": "colorsys:hls_to_rgb", **builtin})


def test_components_are_imported_on_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    known = colours()
    assert known.names() == ["hls", "rgb"]
    assert "rgb" in known
    assert "colorsys" not in sys.modules
    component = known.get("rgb")
    import colorsys

    assert component is colorsys.rgb_to_hsv
    assert known.get("rgb") is component


def test_unknown_names_get_a_suggestion() -> None:
    with pytest.raises(UserError, match="unknown colour 'rbg': did you mean 'rgb'\\? accepted: hls, rgb"):
        colours().get("rbg")
    assert "cmyk" not in colours()
    assert did_you_mean("zzz", ["b", "a"]) == "accepted: a, b"


def test_added_components_are_known_in_this_process() -> None:
    known = colours()
    known.add("grey", len)
    assert known.get("grey") is len
    assert list(known) == ["grey", "hls", "rgb"]
    assert "grey" not in colours()


def test_other_packages_add_through_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def points(*, group: str) -> list[EntryPoint]:
        asked.append(group)
        return [
            EntryPoint("cmyk", "math:sqrt", group),
            EntryPoint("rgb", "math:floor", group),  # does not replace a built-in one
        ]

    monkeypatch.setattr(module, "entry_points", points)
    known = colours()
    import math

    assert known.get("cmyk") is math.sqrt
    assert known.names() == ["cmyk", "hls", "rgb"]
    assert known.get("rgb") is not math.floor
    assert asked == ["tracenas.colour"]


def test_a_component_that_is_not_there_is_a_defect() -> None:
    with pytest.raises(AttributeError):
        colours(broken="colorsys:nothing").get("broken")
