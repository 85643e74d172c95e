"""Checkpoints: as files, while a run trains and starts again, and as weights that another run starts from."""
