"""Configs: frozen, validated descriptions of runs.  Nothing here imports torch: a sweep is planned without it."""
