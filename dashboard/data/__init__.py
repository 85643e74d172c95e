"""Sweeps as the dashboard holds them: read once, shared by all viewers, followed while they grow."""
