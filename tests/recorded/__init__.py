"""Two small sweeps as the software wrote them, for tests that look at pages: `default`, and one with `choices`.

`python -m tests.recorded.record` trains them again (minutes) and packs them into `sweeps.tar.xz`.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

ARCHIVE = Path(__file__).parent / "sweeps.tar.xz"


def recorded_sweeps(root: Path) -> Path:
    """Unpack the sweeps below a results root, and return it."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(root, filter="data")
    return root
