"""`tracenas sparsify`: zeros by a pruning metric, unstructured or N:M."""
