"""Does vLLM answer as transformers does? Greedy tokens and first log-probabilities of checkpoints, one by one.

    python scripts/check_vllm.py DIR… --vllm-python /path/to/vllm-environment/bin/python [--plugin] [--json FILE]

Two environments, two parts: this Python (with tracenas) asks transformers and writes the expectations as JSON; the
other Python (with vLLM) gets this file and the expectations, and reads neither tracenas nor this environment:

    stock     vLLM as it is, its Transformers backend, `trust_remote_code=True`, no plugin
    --plugin  the plugin of tracenas, which must be installed there (`pip install --no-deps tracenas`), no remote code

Everything in fp32. Exit status 0 if all agree, 1 if one does not, 2 for wrong arguments.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TOKENS = 20
TOLERANCE = 2e-3  # of the first token's log-probability
TEXT = "Once upon a time there was a little girl who liked to play in the garden."
SETTINGS = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "WARNING"}


def expected(model: Path, text: str) -> dict[str, Any]:
    """What transformers says, fp32: prompt ids, greedy tokens, log-probability of the first."""
    import torch

    from tracenas.models.checkpoints.loading import load

    loaded = load(str(model), device="cpu", dtype="fp32")
    vocabulary = int(loaded.source.config["vocab_size"])
    if loaded.tokenizer is not None:
        prompt = loaded.tokenizer(text)["input_ids"]
    else:  # a random model
        prompt = [1 + (7 * i) % (vocabulary - 1) for i in range(16)]
    ids = torch.tensor([prompt])
    with torch.no_grad():
        first = loaded.model(ids).logits[0, -1].log_softmax(-1)
        loaded.model.generation_config.eos_token_id = None
        found = loaded.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False
        )
    tokens = found[0, len(prompt) :].tolist()
    margin = first.topk(2).values
    return {
        "model": str(model.resolve()),
        "family": loaded.source.family.model_type,
        "prompt": prompt,
        "tokens": tokens,
        "logprob": float(first[tokens[0]]),
        "margin": float(margin[0] - margin[1]),
        "positions": loaded.source.positions,
    }


def ask_vllm(expectation: dict[str, Any], plugin: bool) -> dict[str, Any]:
    """What vLLM says to the same prompt; runs in vLLM's environment."""
    import transformers
    import vllm

    began = time.monotonic()
    llm = vllm.LLM(
        expectation["model"],
        dtype="float32",
        trust_remote_code=not plugin,
        skip_tokenizer_init=True,
        max_model_len=min(128, expectation["positions"]),
        max_num_seqs=1,
        enforce_eager=True,
        enable_prefix_caching=False,
    )
    sampling = vllm.SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True, logprobs=1, detokenize=False)
    output = llm.generate({"prompt_token_ids": expectation["prompt"]}, sampling)[0].outputs[0]
    tokens = list(output.token_ids)
    kind = llm.apply_model(lambda model: type(model).__name__)[0]
    return {
        "tokens": tokens,
        "logprob": output.logprobs[0][tokens[0]].logprob,
        "implementation": kind,
        "seconds": time.monotonic() - began,
        "versions": {"vllm": vllm.__version__, "transformers": transformers.__version__},
    }


def ask_each(expectations: list[dict[str, Any]], plugin: bool, answer: Path) -> None:
    """`ask_vllm` for one model after the other, in one process; a line of `answer` for each."""
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    for expectation in expectations:
        try:
            found = ask_vllm(expectation, plugin)
        except Exception as error:
            traceback.print_exc()
            found = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:400]}
        with answer.open("a") as file:
            file.write(json.dumps(found) + "\n")
        cleanup_dist_env_and_memory()


def compare(expectation: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """One line of the result."""
    about = {"model": Path(expectation["model"]).name, "family": expectation["family"]}
    if "error" in found:
        return {**about, "passed": False, **found}
    same = sum(a == b for a, b in zip(expectation["tokens"], found["tokens"], strict=False))
    difference = abs(expectation["logprob"] - found["logprob"])
    return {
        **about,
        "equal_tokens": same,
        "tokens": TOKENS,
        "logprob": expectation["logprob"],
        "logprob_difference": difference,
        "implementation": found["implementation"],
        "seconds": round(found["seconds"]),
        "passed": found["tokens"] == expectation["tokens"] and difference <= TOLERANCE,
        "versions": found["versions"],
    }


def run_other(python: str, expectations: list[dict[str, Any]], plugin: bool) -> Iterator[dict[str, Any]]:
    """`ask_each` in the other environment, compared; where a model ends the process, the next ones get another."""
    with tempfile.TemporaryDirectory() as folder:
        file, answer = Path(folder) / "expected.json", Path(folder) / "found.jsonl"
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        environment |= SETTINGS | {"VLLM_PLUGINS": "tracenas" if plugin else "", "HF_HUB_OFFLINE": "1"}
        command = [python, str(Path(__file__).resolve()), "--ask", str(file), "--answer", str(answer)]
        while expectations:
            file.write_text(json.dumps(expectations))
            answer.write_text("")
            run = subprocess.run(
                command + ["--plugin"] * plugin,
                env=environment,
                cwd=folder,
                text=True,
                capture_output=True,
                check=False,
            )
            found = [json.loads(line) for line in answer.read_text().splitlines()]
            if len(found) < len(expectations):
                told = [line for line in run.stderr.splitlines() if "Error" in line] or [""]
                found.append({"error": f"vLLM's process ended with status {run.returncode} {told[-1]}".strip()[:400]})
            yield from (compare(*pair) for pair in zip(expectations, found, strict=False))
            expectations = expectations[len(found) :]


def main(argv: list[str]) -> int:
    """Both parts for every checkpoint; a line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--vllm-python", help="Python of an environment with vLLM")
    parser.add_argument("--plugin", action="store_true", help="with the plugin instead of remote code")
    parser.add_argument("--text", default=TEXT, help="prompt")
    parser.add_argument("--json", type=Path, help="append the results to this JSON list")
    parser.add_argument("--ask", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.ask is not None:
        ask_each(json.loads(options.ask.read_text()), options.plugin, options.answer)
        return 0
    if not options.models or not options.vllm_python:
        parser.error("needs checkpoint directories and --vllm-python")
    expectations = [expected(model, options.text) for model in options.models]
    results = []
    for result in run_other(options.vllm_python, expectations, options.plugin):
        results.append(result | {"mode": "plugin" if options.plugin else "stock"})
        print(_line(results[-1]), flush=True)
    if options.json is not None:
        before = json.loads(options.json.read_text()) if options.json.is_file() else []
        options.json.write_text(json.dumps(before + results, indent=2) + "\n")
    return 0 if all(result["passed"] for result in results) else 1


def _line(result: dict[str, Any]) -> str:
    head = f"{'ok  ' if result['passed'] else 'FAIL'} {result['model']:<34} {result['mode']:<6}"
    if "error" in result:
        return f"{head} {result['error']}"
    return (
        f"{head} {result['equal_tokens']}/{result['tokens']} tokens, first log-probability "
        f"{result['logprob']:.6f}, Δ {result['logprob_difference']:.1e}, {result['implementation']}, "
        f"{result['seconds']} s"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
