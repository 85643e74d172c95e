"""Replays collapsed runs with one thing healed at a time, see `altgrad.explain`."""
