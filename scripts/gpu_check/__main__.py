"""Runs the parts that are named, all of them without a name, and writes a file for each as soon as it is done."""

import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gpu_check.costs import candidate, latency
from gpu_check.machine import Found, Machine
from gpu_check.quality import parity, recovery, refit, search

PARTS: dict[str, Callable[[Machine], Found]] = {
    "parity": parity,
    "search": search,
    "refit": refit,
    "recovery": recovery,
    "latency": latency,
    "candidate": candidate,
}
"""In the order in which they run."""


def run(name: str, machine: Machine) -> dict[str, Any]:
    """What a part found, and whether its checks hold."""
    began = time.perf_counter()
    said: dict[str, Any] = {"part": name, **machine.facts()}
    try:
        said["found"], said["checks"] = PARTS[name](machine)
        said["ok"] = all(check["ok"] for check in said["checks"])
    except Exception:
        said |= {"error": traceback.format_exc(), "ok": False}
    gc.collect()
    if machine.device.type == "cuda":
        torch.cuda.empty_cache()
    return {**said, "seconds": time.perf_counter() - began}


def main(names: list[str]) -> int:
    """The exit status."""
    if unknown := [name for name in names if name not in PARTS]:
        print(f"gpu_check: no part {unknown[0]}; accepted: {', '.join(PARTS)}", file=sys.stderr)
        return 2
    machine = Machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    out = Path(os.environ["OUT"])
    out.mkdir(parents=True, exist_ok=True)
    every = True
    for name in names or PARTS:
        said = run(name, machine)
        temporary = out / f".{name}.json"
        temporary.write_text(json.dumps(said, indent=2, default=str) + "\n", encoding="utf-8")
        temporary.replace(out / f"{name}.json")
        every &= said["ok"]
        broken = [c["name"] for c in said.get("checks", ()) if not c["ok"]]
        state = "ok" if said["ok"] else f"failed: {', '.join(broken) or said['error'].strip().splitlines()[-1]}"
        print(f"{name} on {said['device']}{' (shrunk)' if said['shrunk'] else ''}: {said['seconds']:.1f} s, {state}")
    return 0 if every else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
