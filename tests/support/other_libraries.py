"""Where libraries lie that tests use but the environment lacks, because they would change what others import."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FRAMEWORKS = Path(os.environ.get("ALTGRAD_FRAMEWORKS", ROOT / ".venv/frameworks"))  # transformers, lightning, ...
VISION = Path(os.environ.get("ALTGRAD_VISION", ROOT / ".venv/vision"))  # torchvision, timm


def environment_with(*libraries: Path) -> dict[str, str]:
    """The environment of a process that finds these; skips the test if they are not there."""
    for folder in libraries:
        if not folder.is_dir():
            pytest.skip(f"{folder} is not there: make .venv/{folder.name}")
    path = os.pathsep.join(str(one) for one in (ROOT, *libraries))
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
