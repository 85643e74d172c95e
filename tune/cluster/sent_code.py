"""The code that a cluster's nodes run, as Ray packs it: a clone as it is, or an installed package laid out like one.

Either way the nodes need only the packages that altgrad depends on, and run the same files as this machine.
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

# What a cluster does not need of a working tree; what git ignores is not sent either.
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
    """The entries of a Ray runtime environment that send the code; what they name lives as long as the context."""
    if _PACKAGE.parent == ROOT:
        yield {"working_dir": str(ROOT), "excludes": list(_NOT_SENT)}
        return
    with private_folder(temporary_root()[0]) as folder:
        tree = folder / "altgrad"
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(_PACKAGE, tree / "altgrad", ignore=shutil.ignore_patterns("__pycache__", ROOT.name))
        yield {"working_dir": str(tree)}
