"""From a config to a results folder: the runner, its checkpoints, and what a run says of itself."""
