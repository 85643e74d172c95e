"""Training text and token files: found, looked into, and said what was taken; no torch."""
