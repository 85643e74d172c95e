"""Branches: runs that start from a checkpoint of another run, with some fields changed; and which checkpoints stay.

    parent.py       Branch: the config of a branch, and what of it may differ from the parent
    checkpoints.py  names of checkpoint files, and which of them a run keeps

No torch: a sweep of branches is planned on machines without it.  What a branch takes out of a checkpoint is in
`altgrad.training.branch_state`.
"""

from altgrad.branch.parent import Branch, branch_record, changes_from_parent, with_parent

__all__ = ["Branch", "branch_record", "changes_from_parent", "with_parent"]
