"""`tracenas bench`: latency, throughput and memory of one or more models."""
