"""Damage what tracenas reads, and see that every reader refuses it in one line.

    python scripts/fuzz.py [--seed 0] [--count 1000] [--reader NAME]... [--first N]

Each case is a valid file with a few mutations: bytes, numbers and lengths where the format has them, values and
keys of its JSON. It is read in this process as the commands read it. A case fails if it raises anything but
`UserError`, if that says nothing, or if memory grows by more than 256 MiB. Case N of a reader depends on
the seed and N alone: `--reader NAME --first N --count 1` repeats it. Prints one JSON line per reader; exit 1 if a
case failed.
"""

import argparse
import copy
import json
import random
import resource
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from tracenas.commands.plan.command import plan
from tracenas.config import PlanConfig
from tracenas.errors import UserError
from tracenas.journal import Journal
from tracenas.models.checkpoints.headers import stored_tensors
from tracenas.models.checkpoints.source import open_source
from tracenas.pipeline.refit.record import recorded_loss, recorded_realisation
from tracenas.reporting.data.run import RunData
from tracenas.reporting.pages.run import run_page
from tracenas.rundir import read_json
from tracenas.space import Architecture
from tracenas.space.constraints import Budget
from tracenas.strategies import STRATEGIES, Score, SearchSettings, run_search
from tracenas.symbolic import Expression, locate

LIMIT = 256 << 20
SHAPE = {
    "vocab_size": 33,
    "hidden_size": 16,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "head_dim": 4,
}
LLAMA = {**SHAPE, "model_type": "llama", "tie_word_embeddings": True, "rms_norm_eps": 1e-5, "eos_token_id": 0}
PRUNED = {
    **LLAMA,
    "model_type": "tracenas_llama",
    "base_model_type": "llama",
    "per_layer_config": {"0": {"intermediate_size": 32, "skip": ["attention"]}, "1": {"num_attention_heads": 2}},
    "tracenas_bypass": {"attention": {"module": "self_attn", "norms": ["input_layernorm"]}},
}
MODEL = {
    **LLAMA,
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "dtype": "float32",
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "mlp_bias": False,
    "pad_token_id": None,
    "rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
                        "high_freq_factor": 4.0, "original_max_position_embeddings": 32},
    "use_cache": True,
}  # fmt: skip
T5 = {
    "model_type": "t5",
    "vocab_size": 33,
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 64,
    "num_layers": 2,
    "num_decoder_layers": 1,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "is_encoder_decoder": True,
    "tracenas_layers": {"encoder": {"0": {"num_heads": 2, "bias_heads": [0, 2]}}, "decoder": {"0": {"d_ff": 32}}},
}
CONFIGS = [
    LLAMA,
    PRUNED,
    T5,
    {**LLAMA, "model_type": "gemma3_text", "layer_types": ["sliding_attention", "full_attention"]},
    {**SHAPE, "model_type": "gpt_neox", "tie_word_embeddings": False},
    {**SHAPE, "model_type": "phi3"},
    {**SHAPE, "model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    {**LLAMA, "quantization_config": {"quant_method": "gptq", "bits": 4}},
]
ARCHITECTURE = {"layers": [{"heads": 2, "channels": 32}, {"skip": True}]}


# --- mutations ------------------------------------------------------------------------------------

_NUMBERS = [-1, 0, 1, 2, 3, 7, 32, 48, 1 << 16, (1 << 31) - 1, 1 << 32, 200_000_000, (1 << 63) - 1, 1 << 64, 10**30]
_VALUES: list[Any] = [
    *_NUMBERS, None, True, False, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", "x", "0", "200000000", "\ud800",
    "é" * 99,     [], {}, [None], [1] * 300, [[[]]], {"0": {}}, {"layers": []}, {"x": {"y": None}},
]  # fmt: skip
_TEXTS = [
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b"9" * 5000,
    b"\xef\xbb\xbf",
    b"\x00",
    b"\xff\xfe",
    b"NaN",
    b"-Infinity",
    b"1e999",
]


def damaged_json(rng: random.Random, seed: Any) -> bytes:
    """Text of a JSON value with one to three values or keys changed; sometimes its bytes as well."""
    value = json.loads(json.dumps(seed))
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        value = _changed(rng, value, replaced=0.02)
    text = json.dumps(value).encode()
    return damaged_bytes(rng, text) if rng.random() < 0.3 else text


def _changed(rng: random.Random, value: Any, *, replaced: float = 0.25) -> Any:
    if rng.random() < replaced or not isinstance(value, dict | list) or not value:
        return copy.deepcopy(rng.choice(_VALUES))
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = rng.choice(keys)
    action = rng.random()
    if action < 0.15:
        del value[key]
    elif action < 0.25 and isinstance(value, dict):
        value[rng.choice(["x", "layers", "architecture", "skip", "0", "-1", *map(str, keys)])] = value.pop(key)
    elif action < 0.3:
        other = rng.choice(keys)
        value[key], value[other] = value[other], value[key]
    else:
        value[key] = _changed(rng, value[key])
    return value


def damaged_bytes(rng: random.Random, content: bytes, *, near: int | None = None) -> bytes:
    """A few bytes flipped, removed, repeated or put in, integers overwritten, or the end cut off.

    Args:
        near: mutations lie before this position.
    """
    raw = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        at = rng.randrange(min(near or len(raw), len(raw)) or 1)
        action = rng.randrange(7)
        if action == 0 and raw:
            raw[at % len(raw)] ^= 1 << rng.randrange(8)
        elif action == 1:
            del raw[at : at + rng.choice([1, 4, 8, 64])]
        elif action == 2:
            raw[at:at] = raw[at : at + rng.choice([1, 8, 64])]
        elif action == 3:
            raw[at:at] = rng.choice([*_TEXTS, rng.randbytes(8)])
        elif action == 4:
            del raw[at:]
        else:
            size = rng.choice([4, 8])
            raw[at : at + size] = (rng.choice(_NUMBERS) % (1 << 8 * size)).to_bytes(size, "little")
    return bytes(raw)


# --- valid files ----------------------------------------------------------------------------------


def gguf_bytes() -> bytes:
    """A llama of two blocks, of F32 zeros, with a vocabulary of 33 words."""
    counts = {
        "block_count": 2, "context_length": 64, "embedding_length": 16, "feed_forward_length": 64,
        "attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 4,
    }  # fmt: skip

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    pairs = [text("general.architecture") + struct.pack("<I", 8) + text("llama")]
    pairs += [text("general.alignment") + struct.pack("<II", 4, 32)]
    pairs += [text(f"llama.{key}") + struct.pack("<II", 4, value) for key, value in counts.items()]
    words = b"".join(text(f"w{i}") for i in range(33))
    pairs += [text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 33) + words]
    pairs += [text("tokenizer.ggml.scores") + struct.pack("<IIQ", 9, 6, 33) + bytes(4 * 33)]
    pairs += [text("tokenizer.ggml.eos_token_id") + struct.pack("<II", 4, 0)]
    shapes = {"token_embd": (33, 16), "output_norm": (16,)}
    for block in range(2):
        matrices = {"attn_q": (16, 16), "attn_k": (8, 16), "attn_v": (8, 16), "attn_output": (16, 16)}
        matrices |= {"ffn_gate": (64, 16), "ffn_up": (64, 16), "ffn_down": (16, 64)}
        shapes |= {f"blk.{block}.{name}": shape for name, shape in matrices.items()}
        shapes |= {f"blk.{block}.attn_norm": (16,), f"blk.{block}.ffn_norm": (16,)}
    table, offset = b"", 0
    for name, shape in shapes.items():
        table += text(f"{name}.weight") + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), 0, offset)
        offset += 4 * int(np.prod(shape))
    header = b"GGUF" + struct.pack("<IQQ", 3, len(shapes), len(pairs)) + b"".join(pairs) + table
    return header + bytes(-len(header) % 32) + bytes(offset)


def weights(config: dict[str, Any]) -> dict[str, Any]:
    """Zeros of the shapes that a Llama's configuration has, by name."""
    hidden, width, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    shapes = {"model.embed_tokens": (config["vocab_size"], hidden), "model.norm": (hidden,)}
    for block in range(config["num_hidden_layers"]):
        at = f"model.layers.{block}."
        shapes |= {f"{at}self_attn.{p}_proj": (keys, hidden) for p in "kv"}
        shapes |= {f"{at}self_attn.q_proj": (queries, hidden), f"{at}self_attn.o_proj": (hidden, queries)}
        shapes |= {f"{at}mlp.{p}_proj": (width, hidden) for p in ("gate", "up")} | {
            f"{at}mlp.down_proj": (hidden, width)
        }
        shapes |= {f"{at}{norm}_layernorm": (hidden,) for norm in ("input", "post_attention")}
    return {f"{name}.weight": np.zeros(shape, np.float32) for name, shape in shapes.items()}


# --- readers --------------------------------------------------------------------------------------


@dataclass
class Reader:
    """Writes a damaged file into a folder, and reads it as the commands do."""

    damage: Callable[[random.Random, Path], None]
    read: Callable[[Path], object]
    prepare: Callable[[], object] = lambda: None
    """Imports what reading needs, so that no case is charged with it."""


def _config(rng: random.Random, folder: Path) -> None:
    (folder / "config.json").write_bytes(damaged_json(rng, rng.choice(CONFIGS)))


def _plan(folder: Path) -> None:
    for params in (None, "70%"):
        plan(PlanConfig(model=str(folder), params=params, proxy="phi", no_timing=True)).to_json()


class _Model:
    """A directory with weights; its config.json or a header is damaged."""

    def __init__(self, part: str) -> None:
        self.part, self.content = part, save(weights(MODEL), {"format": "pt"})
        self.length = 8 + int.from_bytes(self.content[:8], "little")

    def damage(self, rng: random.Random, folder: Path) -> None:
        content, config, places = self.content, json.dumps(MODEL).encode(), None
        if self.part == "config":
            config = damaged_json(rng, MODEL)
        elif rng.random() < 0.4:
            header = damaged_json(rng, json.loads(content[8 : self.length]))
            content = len(header).to_bytes(8, "little") + header + content[self.length :]
        elif rng.random() < 0.3:
            places = {"metadata": {}, "weight_map": dict.fromkeys(weights(MODEL), "a.safetensors")}
        else:
            content = damaged_bytes(rng, content, near=self.length)
        (folder / "config.json").write_bytes(config)
        for old in folder.glob("*.safetensors*"):
            old.unlink()
        (folder / ("model.safetensors" if places is None else "a.safetensors")).write_bytes(content)
        if places is not None:
            (folder / "model.safetensors.index.json").write_bytes(damaged_json(rng, places))

    def read(self, folder: Path) -> None:
        from tracenas.models.checkpoints.loading import load

        stored_tensors(folder)
        load(open_source(str(folder)), device="cpu", dtype="fp32")

    def prepare(self) -> None:
        """Read the model undamaged."""
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps(MODEL), encoding="utf-8")
            (Path(folder) / "model.safetensors").write_bytes(self.content)
            self.read(Path(folder))


def _architecture(rng: random.Random, folder: Path) -> None:
    seed = rng.choice(
        [ARCHITECTURE, {"architecture": ARCHITECTURE}, {"encoder": ARCHITECTURE, "decoder": ARCHITECTURE}]
    )
    (folder / "arch.json").write_bytes(damaged_json(rng, seed))


def _read_architecture(folder: Path) -> None:
    path = folder / "arch.json"
    space = SPACE.space
    space.parameters(space.validate(Architecture.from_json(read_json(path), where=str(path)), where=str(path)))


def _metric(rng: random.Random, folder: Path) -> None:
    published = {"data": "mul", "left": {"data": "mms", "left": {"data": "W"}}, "right": {"data": "X"}}
    ours = {"tree": {"op": "add", "args": [0.5, {"op": "sqrt", "args": ["G"]}]}}
    (folder / "metric.json").write_bytes(damaged_json(rng, rng.choice([published, ours])))


def _read_metric(folder: Path) -> None:
    locate(Expression.from_json(read_json(folder / "metric.json"), where="metric.json").infix)


class _Space:
    """A small model's space, and a finished search in it."""

    settings = SearchSettings(population=4, elites=2, iterations=2, init="uniform", seed=0)

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps(LLAMA), encoding="utf-8")
            free = open_source(folder).space()
            self.space = replace(free, budget=Budget(int(0.8 * free.parameters(free.base)), 0.2))
            self.result = self.search(Path(folder))
            self.lines = (Path(folder) / "journal.jsonl").read_bytes().splitlines()
        self.best = {
            "architecture": self.result.best.to_json(),
            "score": self.result.score,
            "loss": 2.5,
            "id": self.result.best.id,
            "provenance": {"realisation": "ridge", "ridge": 0.01, "seed": 0},
        }

    def search(self, folder: Path) -> Any:
        """The search from its beginning, or from its journal on."""
        strategy = STRATEGIES.get("evolution")(self.space, self.settings, prior=None, seeds=[])
        return run_search(
            strategy,
            lambda candidates: [Score(float(self.space.parameters(c)), loss=2.5) for c in candidates],
            Journal(folder / "journal.jsonl"),
            on_event=lambda event: None,
        )

    def damage_journal(self, rng: random.Random, folder: Path) -> None:
        lines = list(self.lines)
        at = rng.randrange(len(lines))
        if rng.random() < 0.7:
            lines[at] = damaged_json(rng, json.loads(lines[at]))
        else:
            lines = damaged_bytes(rng, b"\n".join(lines)).split(b"\n")
        (folder / "journal.jsonl").write_bytes(b"\n".join(lines) + rng.choice([b"", b"\n", b"\n\n", b'{"id": "']))

    def read_journal(self, folder: Path) -> None:
        """For the report, and then for `--resume`."""
        refused: list[UserError] = []
        for read in (RunData.read, self.search):
            try:
                read(folder)
            except UserError as error:
                refused.append(error)
        if refused:
            raise refused[0]

    def damage_best(self, rng: random.Random, folder: Path) -> None:
        (folder / "journal.jsonl").write_bytes(b"\n".join(self.lines) + b"\n")
        (folder / "best.json").write_bytes(damaged_json(rng, self.best))

    def read_best(self, folder: Path) -> None:
        """For `prune`, and for the report."""
        path = folder / "best.json"
        record = read_json(path)
        self.space.validate(Architecture.from_json(record, where=str(path)), where=str(path))
        recorded_realisation(record)
        recorded_loss(record, path)
        run_page(RunData.read(folder))


class _Gguf:
    """A GGUF file whose header is damaged."""

    def __init__(self) -> None:
        self.content = gguf_bytes()
        self.header = len(self.content) - sum(tensor.nbytes for tensor in weights(LLAMA).values())

    def damage(self, rng: random.Random, folder: Path) -> None:
        (folder / "m.gguf").write_bytes(damaged_bytes(rng, self.content, near=self.header))

    def read(self, folder: Path) -> None:
        open_source(str(folder / "m.gguf")).space()


SPACE = _Space()
_CONFIG, _HEADER, _GGUF = _Model("config"), _Model("header"), _Gguf()
READERS = {
    "architecture": Reader(_architecture, _read_architecture),
    "best": Reader(SPACE.damage_best, SPACE.read_best),
    "config": Reader(_config, _plan),
    "gguf": Reader(_GGUF.damage, _GGUF.read),
    "metric": Reader(_metric, _read_metric),
    "journal": Reader(SPACE.damage_journal, SPACE.read_journal),
    "model": Reader(_CONFIG.damage, _CONFIG.read, _CONFIG.prepare),
    "safetensors": Reader(_HEADER.damage, _HEADER.read, _HEADER.prepare),
}


def fuzz(name: str, *, seed: int, count: int, first: int = 0) -> dict[str, Any]:
    """Run `count` cases of a reader; returns how many were read, how many refused, and which failed."""
    reader = READERS[name]
    reader.prepare()
    read, refused, failures = 0, 0, []
    started, slowest = time.perf_counter(), (0.0, first)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        for number in range(first, first + count):
            clock = time.perf_counter()
            reader.damage(random.Random(f"{seed} {name} {number}"), folder)
            try:
                reader.read(folder)
                read += 1
            except UserError as error:
                refused += 1
                if not str(error).strip():
                    failures.append({"case": number, "error": "says nothing"})
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                place = traceback.extract_tb(error.__traceback__)[-1]
                failures.append(
                    {"case": number, "error": f"{type(error).__name__}: {error}"[:200], "at": str(place)[:160]}
                )
            grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
            if grown > LIMIT:
                failures.append({"case": number, "error": f"memory grew by {grown >> 20} MiB"})
                before += grown // 1024
            slowest = max(slowest, (time.perf_counter() - clock, number))
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    return {
        "reader": name,
        "cases": count,
        "read": read,
        "refused": refused,
        "failures": failures,
        "memory_growth_mib": grown >> 20,
        "seconds": round(time.perf_counter() - started, 1),
        "slowest": {"case": slowest[1], "seconds": round(slowest[0], 3)},
    }


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--reader", action="append", choices=sorted(READERS), help="all of them if left out")
    args = parser.parse_args()
    failed = False
    for name in args.reader or READERS:
        result = fuzz(name, seed=args.seed, count=args.count, first=args.first)
        failed |= bool(result["failures"])
        print(json.dumps(result), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
