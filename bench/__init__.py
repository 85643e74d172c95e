"""Benchmarks: speed against its goals, measured as ratios within one run."""
