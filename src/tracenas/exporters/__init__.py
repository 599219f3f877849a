"""Pruned checkpoints in the forms that serving programs read."""
