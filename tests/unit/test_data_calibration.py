import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tracenas.data.calibration import calibration
from tracenas.data.encoding import TextEncoding
from tracenas.data.tokens import check_vocabulary, load_tokens, save_tokens
from tracenas.errors import UserError

SEPARATOR = "<|endoftext|>"


@pytest.fixture
def stories(tmp_path: Path) -> str:
    path = tmp_path / "stories.txt"
    path.write_text(SEPARATOR.join(f"story number {number} of all" for number in range(100)))
    return str(path)


class TestText:
    def test_shape_and_type(self, stories: str, tokenizer) -> None:
        ids = calibration(stories, TextEncoding(tokenizer), samples=5, seq_len=32, seed=0)
        assert ids.shape == (5, 32) and ids.dtype == torch.int64

    def test_defaults(self, stories: str, tokenizer) -> None:
        assert calibration(stories, TextEncoding(tokenizer), default_seq_len=24).shape == (16, 24)

    def test_same_arguments_same_ids(self, stories: str, tokenizer) -> None:
        first, again, other = (
            calibration(stories, TextEncoding(tokenizer), samples=5, seq_len=32, seed=seed) for seed in (0, 0, 1)
        )
        assert torch.equal(first, again) and not torch.equal(first, other)

    def test_fewer_samples_are_the_first_ones(self, stories: str, tokenizer) -> None:
        few, many = (calibration(stories, TextEncoding(tokenizer), samples=count, seq_len=32) for count in (3, 9))
        assert torch.equal(few, many[:3])

    def test_does_not_touch_global_generators(self, stories: str, tokenizer) -> None:
        before = torch.get_rng_state()
        calibration(stories, TextEncoding(tokenizer), samples=2, seq_len=32)
        assert torch.equal(before, torch.get_rng_state())

    def test_documents_joined_by_eos(self, stories: str, tokenizer) -> None:
        text = tokenizer.decode(calibration(stories, TextEncoding(tokenizer), samples=4, seq_len=64).flatten())
        assert all(part.startswith("story number") for part in text.split("</s>")[:-1])

    def test_one_long_document_without_overlap(self, tmp_path: Path, tokenizer) -> None:
        path = tmp_path / "long.txt"
        path.write_text("".join(f"{number:05d}," for number in range(500)))  # 3,000 tokens and EOS
        text = path.read_text() + "</s>"
        places = []
        for seed in range(3):
            ids = calibration(str(path), TextEncoding(tokenizer), samples=20, seq_len=100, seed=seed)
            found = [text.index(tokenizer.decode(row)) for row in ids]
            assert all(b - a >= 100 for a, b in itertools.pairwise(sorted(found)))
            assert max(found) - min(found) > 2000
            places.append(found)
        assert places[0] != places[1] != places[2]

    def test_a_very_long_document_is_tokenised_in_excerpts(
        self, tmp_path: Path, tokenizer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("tracenas.data.calibration._LONG", 0)
        text = "".join(f"{number:05d}," for number in range(20_000))
        path = tmp_path / "long.txt"
        path.write_text(text)
        ids = calibration(str(path), TextEncoding(tokenizer), samples=8, seq_len=30)
        found = sorted(text.index(tokenizer.decode(row)) for row in ids)
        assert all(b - a >= 30 for a, b in itertools.pairwise(found))
        assert found[-1] - found[0] > len(text) / 4
        assert torch.equal(ids, calibration(str(path), TextEncoding(tokenizer), samples=8, seq_len=30))

    def test_an_excerpt_that_falls_short_gives_way_to_the_whole(
        self, tmp_path: Path, tokenizer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("tracenas.data.calibration._LONG", 0)
        monkeypatch.setattr("tracenas.data.calibration._CHARACTERS_PER_TOKEN", 0.5)
        path = tmp_path / "long.txt"
        path.write_text("abcd" * 250)
        assert calibration(str(path), TextEncoding(tokenizer), samples=10, seq_len=100).shape == (10, 100)

    def test_too_few_tokens(self, stories: str, tmp_path: Path, tokenizer) -> None:
        with pytest.raises(UserError, match=r"gives 2 samples of 1000 tokens in all, 3 were asked for"):
            calibration(stories, TextEncoding(tokenizer), samples=3, seq_len=1000)
        path = tmp_path / "short.txt"
        path.write_text("abc")
        with pytest.raises(UserError, match=r"gives 0 samples of 8 tokens in all, 16 were asked for"):
            calibration(str(path), TextEncoding(tokenizer), seq_len=8)

    def test_exactly_enough(self, tmp_path: Path, tokenizer) -> None:
        path = tmp_path / "a.txt"
        path.write_text("abcdefg")
        assert calibration(str(path), TextEncoding(tokenizer), samples=4, seq_len=2).shape == (4, 2)

    @pytest.mark.parametrize("wrong", [{"samples": 0}, {"seq_len": 1}, {"seq_len": -5}])
    def test_sizes(self, stories: str, tokenizer, wrong: dict[str, int]) -> None:
        with pytest.raises(UserError, match="accepted: at least"):
            calibration(stories, TextEncoding(tokenizer), **wrong)

    def test_vocabulary(self, stories: str, tokenizer) -> None:
        calibration(stories, TextEncoding(tokenizer, vocab_size=257), samples=2, seq_len=32)
        with pytest.raises(UserError, match="the model's vocabulary ends at 19"):
            calibration(stories, TextEncoding(tokenizer, vocab_size=20), samples=2, seq_len=32)


class TestMixture:
    def test_shares_of_the_windows(self, tmp_path: Path, tokenizer) -> None:
        for letter in "ab":
            (tmp_path / f"{letter}.txt").write_text(SEPARATOR.join([letter * 15] * 40))
        source = f"{tmp_path}/a.txt=0.75,{tmp_path}/b.txt=0.25"
        ids = calibration(source, TextEncoding(tokenizer), samples=16, seq_len=16)
        letters = [tokenizer.decode(row)[0] for row in ids]
        assert letters.count("a") == 12 and letters.count("b") == 4

    def test_one_long_document_does_not_swamp_it(self, tmp_path: Path, tokenizer) -> None:
        (tmp_path / "a.txt").write_text(SEPARATOR.join(["a" * 15] * 40))
        (tmp_path / "b.txt").write_text("b" * 5000)
        ids = calibration(f"{tmp_path}/a.txt=1,{tmp_path}/b.txt=1", TextEncoding(tokenizer), samples=8, seq_len=16)
        assert [tokenizer.decode(row)[0] for row in ids].count("b") == 4

    def test_too_few_of_one(self, tmp_path: Path, tokenizer) -> None:
        (tmp_path / "a.txt").write_text("a" * 1000)
        (tmp_path / "b.txt").write_text("b" * 40)
        source = f"{tmp_path}/a.txt=1,{tmp_path}/b.txt=1"
        with pytest.raises(UserError, match="gives 5 samples of 16 tokens in these shares, 16 were asked for"):
            calibration(source, TextEncoding(tokenizer), seq_len=16)


class TestTokens:
    @pytest.fixture
    def saved(self, tmp_path: Path) -> tuple[str, torch.Tensor]:
        ids = torch.arange(40, dtype=torch.int64).view(5, 8)
        save_tokens(tmp_path / "ids.safetensors", ids, {"source": "test"})
        return str(tmp_path / "ids.safetensors"), ids

    def test_as_they_are(self, saved, tokenizer) -> None:
        path, ids = saved
        assert torch.equal(calibration(path, TextEncoding(tokenizer)), ids)
        assert torch.equal(calibration(path, TextEncoding(tokenizer), samples=3, seq_len=8, seed=7), ids[:3])

    def test_other_shape(self, saved, tokenizer) -> None:
        path, _ = saved
        with pytest.raises(UserError, match="holds sequences of 8 tokens, 16 were asked for"):
            calibration(path, TextEncoding(tokenizer), seq_len=16)
        with pytest.raises(UserError, match="holds 5 samples, 6 were asked for"):
            calibration(path, TextEncoding(tokenizer), samples=6)

    def test_vocabulary(self, saved, tokenizer) -> None:
        path, ids = saved
        assert torch.equal(calibration(path, TextEncoding(tokenizer, vocab_size=40)), ids)
        with pytest.raises(UserError, match="holds token id 39, the model's vocabulary ends at 38"):
            calibration(path, TextEncoding(tokenizer, vocab_size=39))
        check_vocabulary(ids[:1], 8, "x")

    def test_round_trip_and_nothing_left_behind(self, saved, tmp_path: Path) -> None:
        path, ids = saved
        assert torch.equal(load_tokens(path), ids)
        assert [file.name for file in tmp_path.iterdir()] == ["ids.safetensors"]

    def test_other_integers(self, tmp_path: Path) -> None:
        save_file({"input_ids": torch.ones(2, 3, dtype=torch.int32)}, tmp_path / "a.safetensors")
        assert load_tokens(tmp_path / "a.safetensors").dtype == torch.int64

    @pytest.mark.parametrize(
        ("tensors", "message"),
        [
            ({"tokens": torch.ones(2, 3).long()}, "has no tensor 'input_ids': it has tokens"),
            ({"input_ids": torch.ones(2, 3)}, r"input_ids are float32 \[2, 3\], expected integers"),
            ({"input_ids": torch.ones(6).long()}, r"input_ids are int64 \[6\], expected integers"),
            ({"input_ids": torch.ones(0, 8).long()}, r"input_ids are \[0, 8\], expected at least one"),
            ({"input_ids": torch.ones(2, 1).long()}, r"input_ids are \[2, 1\], expected at least one"),
            ({"input_ids": -torch.ones(2, 3).long()}, "negative id, -1"),
        ],
    )
    def test_wrong_tensors(self, tmp_path: Path, tensors: dict[str, torch.Tensor], message: str) -> None:
        save_file(tensors, tmp_path / "a.safetensors")
        with pytest.raises(UserError, match=message):
            load_tokens(tmp_path / "a.safetensors")

    def test_unreadable(self, tmp_path: Path) -> None:
        for content in (b"", b"not safetensors at all"):
            (tmp_path / "a.safetensors").write_bytes(content)
            with pytest.raises(UserError, match="no readable safetensors file") as caught:
                load_tokens(tmp_path / "a.safetensors")
            assert "\n" not in str(caught.value)
        with pytest.raises(UserError, match="does not exist"):
            load_tokens(tmp_path / "b.safetensors")

    def test_a_pointer_of_git_lfs(self, tmp_path: Path) -> None:
        (tmp_path / "t.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
        with pytest.raises(UserError, match=r"t.safetensors: .*git lfs pull"):
            load_tokens(tmp_path / "t.safetensors")

    def test_saves_only_two_dimensions(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"must be \[N, L\], not \[3\]"):
            save_tokens(tmp_path / "a.safetensors", torch.ones(3).long())
