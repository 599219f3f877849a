"""Run by a Python that has vLLM: how long a checkpoint takes in it. Imports nothing of tracenas.

Answers a line of JSON on standard input by one on standard output, after a first line that says what is there:

    {"model": DIRECTORY, "dtype": "bfloat16", "length": 640, "sequences": 8, "share": 0.45, "trust_remote_code": false,
     "seed": 0, "batch": 1, "prompt": 512, "new_tokens": 16}
    → {"prefill": 0.8, "decode": 0.2}

The first request loads its model, which stays; the others are of the same one. Prefill is a request for one token,
decode what `new_tokens` take beyond that; vLLM's own schedule, without its cache of prefixes.
"""

import json
import os
import random
import sys
import time
from typing import Any

__all__ = ["main"]

_QUIET = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}


def load(vllm: Any, request: dict[str, Any]) -> Any:
    """The model of a request."""
    return vllm.LLM(
        request["model"],
        dtype=request["dtype"],
        trust_remote_code=request["trust_remote_code"],
        seed=request["seed"],
        skip_tokenizer_init=True,
        max_model_len=request["length"],
        max_num_seqs=request["sequences"],
        gpu_memory_utilization=request["share"],
        enable_prefix_caching=False,
    )


def trial(vllm: Any, llm: Any, request: dict[str, Any]) -> dict[str, float]:
    """Seconds of a request."""
    draw, vocabulary = random.Random(request["seed"]), llm.model_config.get_vocab_size()
    prompts = [
        {"prompt_token_ids": [draw.randrange(vocabulary) for _ in range(request["prompt"])]}
        for _ in range(request["batch"])
    ]

    def seconds(tokens: int) -> float:
        how = vllm.SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        began = time.perf_counter()
        llm.generate(prompts, how, use_tqdm=False)
        return time.perf_counter() - began

    prefill = seconds(1)
    return {"prefill": prefill, "decode": max(1e-9, seconds(request["new_tokens"]) - prefill)}


def main() -> None:
    """Answer until standard input ends."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what else is printed is not an answer
    import torch
    import vllm  # type: ignore[import-not-found,unused-ignore]

    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else "cpu"
    facts = {"vllm": vllm.__version__, "device": device, "threads": torch.get_num_threads()}
    print(json.dumps(facts), file=answers, flush=True)
    llm = None
    for line in sys.stdin:
        request = json.loads(line)
        llm = llm or load(vllm, request)
        print(json.dumps(trial(vllm, llm, request)), file=answers, flush=True)


if __name__ == "__main__":
    main()
