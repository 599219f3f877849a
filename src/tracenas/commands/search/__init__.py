"""`tracenas search`: the architecture with the highest proxy score under the budget."""
