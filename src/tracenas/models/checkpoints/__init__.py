"""Models on disk: reading, loading, writing, cards."""
