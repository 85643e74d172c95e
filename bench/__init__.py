"""Speed: what was promised, measured as ratios within one run."""
