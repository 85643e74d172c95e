"""Watchers of a sweep: live table, webhook, copy for W&B.  They only show or copy, and never end or delay a trial."""
