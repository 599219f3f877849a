"""Numbers read off a model's outputs: loss, perplexity, KL divergence, largest logit."""
