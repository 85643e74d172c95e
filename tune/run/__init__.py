"""Runs trials through Ray Tune: starts, stops and restarts them, and writes their end records."""
