"""The configs that ship with altgrad: `configs/` in a clone, `altgrad/_apps/configs/` in a wheel."""

from __future__ import annotations

import os
from pathlib import Path

from altgrad.text.error_hints import did_you_mean

_PACKAGE = Path(__file__).resolve().parents[1]
_CARRIED = _PACKAGE / "_apps"  # written by the build alone: see pyproject.toml

ROOT = _CARRIED if _CARRIED.is_dir() else _PACKAGE.parent
"""The folder in which `configs/`, `tune/` and `dashboard/` lie."""

CONFIGS = ROOT / "configs"


def config_file(path: str) -> Path:
    """The file that a path names, or the shipped config for a bare name without such a file, such as `e7m0_uniform`.

    A path that is neither is returned unchanged; reading it then raises an error, to which `near_config` adds.
    """
    shipped = os.path.join(CONFIGS, f"{path.removesuffix('.yaml')}.yaml")
    is_name = os.path.basename(path) == path and not os.path.exists(path)
    return Path(shipped) if is_name and os.path.isfile(shipped) else Path(path).expanduser()


def near_config(path: str | Path) -> str:
    """The end of an error about a config that does not exist: the shipped one that may be meant, or that there are."""
    shipped = sorted(file.stem for file in CONFIGS.glob("*.yaml"))
    near = did_you_mean(Path(path).name.removesuffix(".yaml"), shipped)
    return near or f"; shipped configs lie in {CONFIGS}"
