"""`tracenas recover`: training after pruning."""
