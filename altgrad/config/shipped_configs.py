"""The configs that ship with altgrad: `configs/` in a clone, `altgrad/_apps/configs/` in a wheel."""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
_CARRIED = _PACKAGE / "_apps"  # written by the build alone: see pyproject.toml

ROOT = _CARRIED if _CARRIED.is_dir() else _PACKAGE.parent
"""The folder in which `configs/`, `tune/` and `dashboard/` lie."""

CONFIGS = ROOT / "configs"


def config_file(path: str) -> Path:
    """The file that a path names, or the shipped config for a bare name without such a file, such as `e7m0_uniform`.

    A path that is neither is returned unchanged; reading it then raises an error.
    """
    shipped = os.path.join(CONFIGS, f"{path.removesuffix('.yaml')}.yaml")
    is_name = os.path.basename(path) == path and not os.path.exists(path)
    return Path(shipped) if is_name and os.path.isfile(shipped) else Path(path).expanduser()
