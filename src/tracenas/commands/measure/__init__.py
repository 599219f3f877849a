"""`tracenas measure`: latencies of sub-blocks by width on what will serve the model."""
