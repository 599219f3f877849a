"""Refits of a session: their text, the fit, and which realisation is written."""
