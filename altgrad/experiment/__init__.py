"""From a config to a results folder: the runner, its checkpoints, and the provenance that it records."""
