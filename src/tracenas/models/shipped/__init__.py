"""The code that travels with a heterogeneous checkpoint; it imports nothing but torch and transformers."""
