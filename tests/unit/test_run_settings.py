"""What a run keeps where: the base's loss, by which a resumed run knows its model, and a directory per size."""

from pathlib import Path

import pytest

from tracenas.commands.run.written import size_directory
from tracenas.config import RunConfig
from tracenas.errors import UserError
from tracenas.pipeline.resume import same_model


@pytest.mark.parametrize("change", [1e-3, -1e-3])
def test_another_model_is_refused(tmp_path: Path, change: float) -> None:
    same_model(tmp_path, 2.5)
    same_model(tmp_path, 2.5 + 1e-5)
    with pytest.raises(UserError, match=r"--resume with another model: .* the run's is 2\.500000"):
        same_model(tmp_path, 2.5 + change)


@pytest.mark.parametrize("text", ["{}", "[]", '{"loss": "2.5"}', '{"loss": NaN}', '{"loss": true}', "{"])
def test_a_damaged_record_of_the_base_is_told(text: str, tmp_path: Path) -> None:
    (tmp_path / "base.json").write_text(text)
    with pytest.raises(UserError, match="base.json: "):
        same_model(tmp_path, 2.5)


def test_a_share_and_an_amount_of_the_same_number_are_two_checkpoints(tmp_path: Path) -> None:
    settings = {"model": "m", "data": "d", "text": "t", "out": tmp_path, "front": True, "checkpoints": "60%,60,60.5ms"}
    config = RunConfig(**settings, costs="decode_ms,params")
    places = [size_directory(config, size).relative_to(tmp_path) for size in config.sizes_of_checkpoints]
    assert [str(place) for place in places] == [f"checkpoints/decode_ms-{name}" for name in ("60", "60ms", "60.5ms")]
    one = config.model_copy(update={"costs": "params"})
    assert [size_directory(one, size).name for size in ("60%", "1.2M")] == ["params-60", "params-1.2M"]
