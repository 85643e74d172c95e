"""Parity: whether a group of runs is as good as another one within a margin, and what else than the format differs.

`verdict` judges paired differences, `power` plans the number of seeds, `confounds` names what else differs.  `pairs`
compares any two groups, and `parity_table` is the table of verdicts that all documents and pages show.
"""
