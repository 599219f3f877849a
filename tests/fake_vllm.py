"""A Python whose vllm takes no time but what it says: so much per step and block, and per head, channel and token.

The real script runs in it, over a clock of its own; what is measured adds up exactly, whatever else the machine does.
"""

import sys
from pathlib import Path

__all__ = ["CHANNEL", "HEAD", "STEP", "fake_vllm_python"]

STEP, HEAD, CHANNEL = 1e-2, 1e-3, 1e-4
"""Seconds of a step, as long again for every block, and per head or channel and token."""

_MODULE = """
import json, os, time
from types import SimpleNamespace as Of

__version__ = "0.0.fake"
clock = [0.0]
time.perf_counter = lambda: clock[0]


class SamplingParams:
    def __init__(self, *, temperature, max_tokens, ignore_eos, detokenize):
        assert temperature == 0 and ignore_eos and not detokenize
        self.tokens = max_tokens


def widths(config, trusted, folder):
    for index in range(config["num_hidden_layers"]):
        block = {**config, **config.get("per_layer_config", {}).get(str(index), {})}
        skip = block.get("skip", [])
        if "base_model_type" in config and trusted:
            assert "attention" not in skip and os.path.exists(os.path.join(folder, "modeling_tracenas.py"))
        yield 0 if "attention" in skip else block["num_attention_heads"], (
            0 if "mlp" in skip else block["intermediate_size"]
        )


class Engine:
    def __init__(self, blocks, sequences, length):
        self.blocks, self.sequences, self.length, self.running = blocks, sequences, length, {}

    def add_request(self, name, prompt, how):
        ids = prompt["prompt_token_ids"]
        assert len(ids) + how.tokens <= self.length and len(self.running) < self.sequences
        self.running[name] = Of(waiting=len(ids), done=0, tokens=how.tokens)

    def has_unfinished_requests(self):
        return bool(self.running)

    def step(self):
        tokens = sum(one.waiting for one in self.running.values())
        work = sum(HEAD * heads + CHANNEL * channels for heads, channels in self.blocks)
        clock[0] += STEP * (1 + len(self.blocks)) + work * tokens
        for one in self.running.values():
            one.waiting, one.done = 1, one.done + 1
        answers = [Of(request_id=name, outputs=[Of(token_ids=[0] * one.done)]) for name, one in self.running.items()]
        self.running = {name: one for name, one in self.running.items() if one.done < one.tokens}
        return answers


class LLM:
    def __init__(self, model, *, max_model_len, max_num_seqs, trust_remote_code, dtype, **how):
        print("noise on standard output")
        assert how["skip_tokenizer_init"] and not how["enable_prefix_caching"]
        config = json.load(open(os.path.join(model, "config.json")))
        assert how.get("load_format") == "dummy" or os.path.exists(os.path.join(model, "model.safetensors"))
        if os.environ.get("FAKE_VLLM_REFUSES") == dtype:
            raise ValueError(f"{dtype} is not served")
        with open(os.environ.get("FAKE_VLLM_LOG", os.devnull), "a") as log:
            log.write(json.dumps({"dtype": dtype, "trusted": trust_remote_code, **how}) + "\\n")
        self.llm_engine = Engine(list(widths(config, trust_remote_code, model)), max_num_seqs, max_model_len)
        self.model_config = Of(get_vocab_size=lambda: config["vocab_size"])
"""
_TORCH = "cuda = type('cuda', (), {'is_available': staticmethod(lambda: False)})\nget_num_threads = lambda: 3\n"
_PLUGIN = "[vllm.general_plugins]\ntracenas = tracenas.exporters.vllm_plugin:register\n"


def fake_vllm_python(directory: Path) -> Path:
    """An interpreter that finds this module, and tracenas as its plugin."""
    installed = directory / "tracenas-0.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: tracenas\nVersion: 0\n")
    (installed / "entry_points.txt").write_text(_PLUGIN)
    (directory / "vllm.py").write_text(f"STEP, HEAD, CHANNEL = {STEP}, {HEAD}, {CHANNEL}\n{_MODULE}")
    (directory / "torch.py").write_text(_TORCH)
    python = directory / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{directory}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return python
