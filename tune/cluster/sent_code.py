"""The code that Ray sends to a cluster's nodes: a clone unchanged, or an installed package in the layout of a clone.

In both cases the nodes run the same files as this machine, and need only the packages on which altgrad depends.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import altgrad
from altgrad.config.shipped_configs import ROOT
from tune.cluster.private_folders import private_folder, temporary_root

# Parts of a working tree that a cluster does not need; files that git ignores are not sent either.
_NOT_SENT = (
    "/.git/",
    "/.venv/",
    "/results/",
    "/wandb/",
    "/artifacts/",
    "/dist/",
    "/build/",
    "__pycache__/",
    ".*_cache/",
)
_PACKAGE = Path(altgrad.__file__).resolve().parent


@contextmanager
def sent_code() -> Iterator[dict[str, Any]]:
    """Context with the entries of a Ray runtime environment that send the code; their folder exists inside it only."""
    if _PACKAGE.parent == ROOT:
        yield {"working_dir": str(ROOT), "excludes": list(_NOT_SENT)}
        return
    with private_folder(temporary_root()[0]) as folder:
        tree = folder / "altgrad"
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(_PACKAGE, tree / "altgrad", ignore=shutil.ignore_patterns("__pycache__", ROOT.name))
        yield {"working_dir": str(tree)}
