"""`tracenas best`: from one run to the architectures of many budgets."""
