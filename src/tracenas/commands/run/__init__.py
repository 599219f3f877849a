"""`tracenas run`: every stage from search to report, resumable."""
