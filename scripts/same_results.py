"""Fingerprints of what a search and a demo write, to show that a change of the code leaves every result as it was.

    python scripts/same_results.py before.json [--model DIR --data TEXT]    # at the one commit
    python scripts/same_results.py after.json  [--model DIR --data TEXT]    # at the other
    diff before.json after.json

Journals are compared line by line without their times, checkpoints by the hash of every tensor's bytes. One thread:
sums of floating-point numbers depend on how they are divided.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TIMES = {"seconds", "overhead_seconds", "peak_memory_bytes", "time", "created", "elapsed"}


def digest(data: bytes) -> str:
    """The first 16 digits of a SHA-256."""
    return hashlib.sha256(data).hexdigest()[:16]


def timeless(value: Any) -> Any:
    """JSON without what is measured with a clock."""
    if isinstance(value, dict):
        return {key: timeless(v) for key, v in value.items() if key not in TIMES}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def journal(path: Path) -> list[str]:
    """A digest of every line."""
    return [digest(json.dumps(timeless(json.loads(line))).encode()) for line in path.read_text().splitlines()]


def tensors(path: Path) -> Iterator[tuple[str, str]]:
    """(name, dtype, shape and digest) of every tensor of a safetensors file."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        for name, entry in sorted(header.items()):
            if name == "__metadata__":
                continue
            first, end = entry["data_offsets"]
            file.seek(8 + length + first)
            yield name, f"{entry['dtype']} {entry['shape']} {digest(file.read(end - first))}"


def fingerprint(directory: Path) -> dict[str, Any]:
    """Of every journal and every tensor below a directory."""
    journals = {str(p.relative_to(directory)): journal(p) for p in sorted(directory.rglob("*.jsonl"))}
    files = sorted(directory.rglob("*.safetensors"))
    return {"journals": journals, "tensors": {str(p.relative_to(directory)): dict(tensors(p)) for p in files}}


def main() -> None:
    """Run demo and search with the installed package, and write their fingerprints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", help="a model to search and prune beside the demo's")
    parser.add_argument("--data", help="its text")
    parser.add_argument("--workdir", type=Path, help="where the runs stay; by default they are removed")
    args = parser.parse_args()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory() as temporary:
        work = args.workdir or Path(temporary)

        def tracenas(*words: str) -> None:
            code = "import sys; from tracenas.cli import main; sys.exit(main())"
            subprocess.run([sys.executable, "-c", code, *words], check=True, env=environment, stdout=subprocess.DEVNULL)

        tracenas("demo", "--out", str(work / "demo"))
        if args.model:
            budget = (
                "--params",
                "60%",
                "--samples",
                "16",
                "--seq-len",
                "256",
                "--population",
                "12",
                "--iterations",
                "6",
            )
            for name, proxy in (("search", "auto"), ("phi", "phi")):
                settings = ("--elites", "4", "--proxy", proxy, "--threads", "1", "--seed", "0", "--device", "cpu")
                run = str(work / name)
                tracenas("search", args.model, "--data", args.data, *budget, *settings, "--out", run)
                arch = f"{run}/best.json"
                tracenas("prune", args.model, "--arch", arch, "--out", str(work / f"{name}-pruned"), "--device", "cpu")
        args.out.write_text(json.dumps(fingerprint(work), indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
