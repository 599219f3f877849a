"""Run directories as typed values."""
