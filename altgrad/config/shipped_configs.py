"""The configs that come with altgrad: `configs/` in a clone, carried below the library by a wheel."""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
_CARRIED = _PACKAGE / "_apps"  # written by the build alone: see pyproject.toml

ROOT = _CARRIED if _CARRIED.is_dir() else _PACKAGE.parent
"""The folder in which `configs/`, `tune/` and `dashboard/` lie."""

CONFIGS = ROOT / "configs"


def config_file(path: str) -> Path:
    """The file that a path names; a bare name that no file here has, such as `e7m0_uniform`, is a shipped config.

    A path that is neither stays as it is, for the reader to refuse.
    """
    shipped = os.path.join(CONFIGS, f"{path.removesuffix('.yaml')}.yaml")
    is_name = os.path.basename(path) == path and not os.path.exists(path)
    return Path(shipped) if is_name and os.path.isfile(shipped) else Path(path).expanduser()
