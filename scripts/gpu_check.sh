#!/bin/bash
# What there is to check on a GPU, in five minutes on one H100 or H200: scripts/gpu_check.sh [PART...]
#
# Every part writes OUT/PART.json at once (OUT: gpu-check by default; also in the environment). Needed are torch,
# transformers, peft, numpy, scipy, safetensors, rich, click and pyyaml, and no network. Without a GPU the parts are shrunk
# and say so. Exit status 1: a check failed. Parts: parity search refit recovery latency candidate.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD/src:$PWD/scripts${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 OUT="${OUT:-gpu-check}"
exec "${PYTHON:-python3}" -m gpu_check "$@"
