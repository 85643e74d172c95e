"""Shipped tasks, one module each; `--task NAME` finds them.  Each module's `task` makes one, see `training.task`."""
