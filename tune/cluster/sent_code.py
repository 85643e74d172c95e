"""The code that Ray sends to a cluster's nodes: a clone unchanged, or an installed package in the layout of a clone.

In both cases the nodes run the same files as this machine, and need only the packages on which altgrad depends.  The
module of a task that is not installed is sent beside it.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
import sysconfig
from collections.abc import Iterable, Iterator
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
def sent_code(tasks: Iterable[str] = ()) -> Iterator[dict[str, Any]]:
    """Context with the entries of a Ray runtime environment that send the code; their folder exists inside it only.

    tasks: names of tasks as in the config's `task`.
    """
    modules = [str(place) for place in places_of(tasks)]
    more: dict[str, Any] = {"py_modules": modules} if modules else {}
    if _PACKAGE.parent == ROOT:
        yield {"working_dir": str(ROOT), "excludes": list(_NOT_SENT), **more}
        return
    with private_folder(temporary_root()[0]) as folder:
        tree = folder / "altgrad"
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(_PACKAGE, tree / "altgrad", ignore=shutil.ignore_patterns("__pycache__", ROOT.name))
        yield {"working_dir": str(tree), **more}


def places_of(tasks: Iterable[str]) -> list[Path]:
    """Files and folders of the tasks' top-level modules, from the current folder or Python's path.

    Installed modules are left out, since a node has its own installation, and so are those of this tree.
    """
    installed = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib")]
    tops = dict.fromkeys(task.partition(":")[0].partition(".")[0] for task in tasks if ":" in task or "." in task)
    found = []
    for top in tops:
        place = _place_of(top)
        if place is None or any(place.is_relative_to(folder) for folder in (*installed, ROOT, _PACKAGE.parent)):
            continue
        found.append(place)
    return found


def _place_of(top: str) -> Path | None:
    """The file or folder of a module, without importing it; None if there is none."""
    here = Path.cwd()
    for place in (here / top, here / f"{top}.py"):
        if place.exists():
            return place.resolve()
    if top in sys.builtin_module_names:
        return None
    spec = importlib.util.find_spec(top)
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).resolve()
    return None if spec.origin is None else Path(spec.origin).resolve()
