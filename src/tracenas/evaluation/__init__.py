"""Quality of a model: perplexity, and tasks through lm-eval."""
