"""Models cut in memory: unit order, super-network, views, block-by-block running."""
