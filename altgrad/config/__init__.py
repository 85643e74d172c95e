"""Configs: frozen, checked records of what a run is to be; no torch, so that a sweep is planned without it."""
