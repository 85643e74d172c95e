"""Measures how long trials take on this machine, by a few real steps of each kind, and stores the times."""
