"""Readers of results: sweeps, runs, their curves, events and ancestors, and what two runs have in common."""
