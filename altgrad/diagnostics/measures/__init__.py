"""Measurements around the real optimizer step: one quantity, one small class, one file each."""
