"""`tracenas prune`: the checkpoint of an architecture, or of a one-shot method."""
