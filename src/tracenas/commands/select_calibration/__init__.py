"""`tracenas select-calibration`: the calibration set that prunes to the smallest divergence."""
