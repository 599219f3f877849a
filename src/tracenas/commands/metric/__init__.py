"""`tracenas metric`: symbolic pruning metrics, discovered and looked at."""
