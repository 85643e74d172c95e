"""Sweeps in the dashboard's memory: read once, shared by all viewers, and updated while they grow."""
