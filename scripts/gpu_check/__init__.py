"""A check of what a GPU changes: `scripts/gpu_check.sh`."""
