import pytest
import toys
from hypothesis import given, settings
from hypothesis import strategies as st

from tracenas.errors import UserError
from tracenas.families import Options, config_family
from tracenas.space import Architecture, SearchSpace, SubBlockSpec, parse_size
from tracenas.space import costs as measured

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 8,
    "num_hidden_layers": 3,
    "intermediate_size": 96,
    "vocab_size": 100,
    "tie_word_embeddings": False,
}


def llama(kv_heads: int, **options: object) -> SearchSpace:
    config = {**LLAMA, "num_key_value_heads": kv_heads}
    family = config_family(config)
    blocks = family.blocks(config, Options(**options))  # type: ignore[arg-type]
    return SearchSpace(tuple(b.spec for b in blocks), family.outside(config))


def arch(*rows: dict[str, int] | None) -> Architecture:
    return Architecture.from_json({"layers": [{"skip": True} if r is None else r for r in rows]})


def test_widths_are_multiples_or_the_bases_own() -> None:
    spec = SubBlockSpec("mlp", "channels", 100, quantum=32)
    assert spec.choices() == (32, 64, 96, 100)
    assert [k for k in range(101) if spec.feasible(k)] == [0, 32, 64, 96, 100]
    assert SubBlockSpec("mlp", "channels", 20, quantum=32).choices() == (20,)
    assert SubBlockSpec("attention", "heads", 8, quantum=4).choices() == (4, 8)
    assert SubBlockSpec("attention", "heads", 0).choices() == ()


@given(st.integers(1, 300), st.sampled_from([1, 4, 32]), st.floats(0, 400))
@settings(max_examples=200, deadline=None)
def test_round_and_floor_equal_the_exhaustive_search(units: int, quantum: int, kept: float) -> None:
    spec = SubBlockSpec("mlp", "channels", units, quantum=quantum)
    choices = spec.choices()
    assert spec.round(kept) == min(choices, key=lambda k: (abs(k - kept), k))
    assert spec.floor(kept) == max((k for k in choices if k <= kept), default=choices[0])


def test_parameters_of_multi_head_llama_by_hand() -> None:
    space = llama(8)
    outside = 2 * 100 * 64 + 64
    full = 4 * 64 * 64 + 3 * 64 * 96 + 2 * 64
    assert space.parameters(space.base) == outside + 3 * full
    cut = arch({"heads": 5, "channels": 32}, None, {"heads": 0, "channels": 96})
    expected = outside + (4 * 5 * 8 * 64 + 64) + (3 * 64 * 32 + 64) + (3 * 64 * 96 + 64)
    assert space.parameters(space.validate(cut)) == expected


def test_parameters_of_grouped_query_llama_by_hand() -> None:
    space = llama(2)
    cut = space.validate(arch({"heads": 4, "channels": 64}, None, None))
    attention = 2 * 4 * 8 * 64 + 2 * 2 * 8 * 64 + 64
    assert space.parameters(cut) - space.outside == attention + 3 * 64 * 64 + 64
    groups = llama(2, kv_groups=True)
    cut = groups.validate(arch({"kv_heads": 1, "channels": 64}, None, None))
    attention = 2 * 4 * 8 * 64 + 2 * 1 * 8 * 64 + 64
    assert groups.parameters(cut) - groups.outside == attention + 3 * 64 * 64 + 64
    derived = Architecture.from_json(
        {"layers": [{"kv_heads": 1, "heads": 4, "channels": 64}, {"skip": True}, {"skip": True}]}
    )
    assert groups.validate(derived) == cut
    with pytest.raises(UserError, match="'heads' must be kv_heads times 4"):
        groups.validate(arch({"kv_heads": 1, "heads": 5, "channels": 64}, None, None))


def test_flops_and_cache_by_hand() -> None:
    space = llama(2)
    cut = space.validate(arch({"heads": 4, "channels": 64}, None, None))
    context = 16
    weights = 2 * 4 * 8 * 64 + 2 * 2 * 8 * 64 + 3 * 64 * 64
    # Scores and their product with V: 2 · 2 · 8 FLOPs per head and visible position; (T + 1) / 2 are visible.
    attention = 2 * 2 * 8 * 4 * (context + 1) / 2
    got = measured.flops_per_token(space.layers, 100 * 64, cut, context)
    assert got == 2 * 100 * 64 + 2 * weights + attention
    assert measured.kv_cache_per_token(space.layers, cut) == 2 * 2 * 8
    assert measured.kv_cache_per_token(llama(8).layers, cut) == 2 * 4 * 8


@given(toys.spaces(), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_parameters_add_up_over_sub_blocks(space: SearchSpace, seed: int) -> None:
    import numpy as np

    rng = np.random.default_rng(seed)
    full = space.counts(space.base)
    rows = [[k if rng.random() < 0.5 else 0 for k in row] for row in full]
    empty = [[0] * len(row) for row in rows]
    alone = 0
    for i, row in enumerate(rows):
        for j, k in enumerate(row):
            single = [list(r) for r in empty]
            single[i][j] = k
            alone += space.parameters(space.build(single)) - space.outside
    assert space.parameters(space.build(rows)) == space.outside + alone
    assert space.cost(space.build(rows)) == space.parameters(space.build(rows))


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *(("60%", 600), ("60 %", 600), ("100%", 1000), ("33.3%", 333), ("0.5k", 500), (".5k", 500), ("700", 700)),
        *((250, 250), ("1,000", 1000), ("1e", None), ("1,00", None), ("-60%", None), ("60%%", None)),
    ],
)
def test_sizes(text: str, size: int | None) -> None:
    if size is None:
        with pytest.raises(UserError, match="expected a share"):
            parse_size(text, 1000)
    else:
        assert parse_size(text, 1000) == size


def test_sizes_of_billions_and_refusals() -> None:
    assert parse_size("2.7B", 6_738_415_616) == 2_700_000_000
    assert parse_size("350M", 10**9) == 350_000_000
    with pytest.raises(UserError, match="more than 0"):
        parse_size("0%", 1000)
    with pytest.raises(UserError, match=r"more than the base model's 1,000"):
        parse_size("2k", 1000)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        *(
            ("0.6", "60%"),
            (0.6, "60%"),
            (".6", "60%"),
            ("60", "60% or 60M"),
            ("1", "1% or 1B"),
            ("1.5", "1.5% or 1.5B"),
        ),
        *(("0,6", "0.6"), ("2,7B", "2.7B"), ("60,5%", "60.5%")),
    ],
)
def test_what_a_size_without_a_unit_may_mean(text: str | float, meant: str) -> None:
    with pytest.raises(UserError, match=rf"^params '{text}'.*; did you mean {meant}\?$"):
        parse_size(text, 2_000_000_000)


def test_more_than_all_of_the_base() -> None:
    with pytest.raises(UserError, match=r"more than the base model's 1,000; accepted: up to 100%"):
        parse_size("120%", 1000)
