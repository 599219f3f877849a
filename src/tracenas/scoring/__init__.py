"""From an architecture to a score: super-network, calibration and proxy together."""
