"""What the models of `tracenas demo --model smollm2` say to its prompts."""

from collections.abc import Callable
from pathlib import Path

import torch

from tracenas.commands.demo.estimate import ANSWER_TOKENS
from tracenas.commands.run.written import CHECKPOINT, RECOVERED_CHECKPOINT
from tracenas.config import RunConfig
from tracenas.data.packing import refusals
from tracenas.models.checkpoints.loading import load
from tracenas.reporting.progress import phase
from tracenas.rundir import write_json

__all__ = ["ANSWERING", "PROMPTS", "answers"]

PROMPTS = (
    "What is the capital of France?",
    "Explain in two sentences why the sky is blue.",
    "Write a Python function that returns the larger of two numbers.",
)
ANSWERING = ("base", "pruned", "recovered")


def answers(settings: RunConfig, path: Path) -> list[dict[str, str]]:
    """What the models say to the prompts, greedily, one model in memory at a time."""
    paths = (settings.model, str(settings.out / CHECKPOINT), str(settings.out / RECOVERED_CHECKPOINT))
    models = dict(zip(ANSWERING, paths, strict=True))
    texts: dict[str, list[str]] = {}
    with phase("answers", len(models) * len(PROMPTS)) as steps:
        for name, model in models.items():
            texts[name] = _generated(model, settings, steps.advance)
    rows = [{"prompt": p, **{name: texts[name][i] for name in models}} for i, p in enumerate(PROMPTS)]
    write_json(path, rows)
    return rows


def _generated(model: str, settings: RunConfig, advance: Callable[[], None]) -> list[str]:
    loaded = load(model, device=settings.device, dtype=settings.dtype)
    tokenizer, out = loaded.tokenizer, []
    for prompt in PROMPTS:
        text = f"{prompt}\n"
        if tokenizer.chat_template:
            messages = [{"role": "user", "content": prompt}]
            with refusals("chat template", f"prompt '{prompt}'"):
                text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = torch.tensor([tokenizer(text, add_special_tokens=False).input_ids], device=loaded.device)
        ids = ids[:, -max(1, loaded.source.positions - ANSWER_TOKENS) :]
        with torch.no_grad():
            tokens = loaded.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=min(ANSWER_TOKENS, loaded.source.positions - ids.shape[1]),
                do_sample=False,
                pad_token_id=loaded.eos,
            )
        out.append(tokenizer.decode(tokens[0, ids.shape[1] :], skip_special_tokens=True))
        advance()
    return out
