"""Least-squares refits of output projections to the dense model's outputs."""
