"""Rows of bytes: what a GPU reads and writes for a rounded transformer block, counted by Inductor without a GPU."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench.harness import NotMeasured
from tests.cuda_code.process import run, why_not


def block_against_bfloat16(case: str) -> Callable[[int], list[float]]:
    """A row's measurement: bytes of a block (see `tests.cuda_code.block_bytes`), divided by those in BF16 autocast."""

    def measure(pairs: int) -> list[float]:
        return [_moved(case) / _moved("bf16")]

    return measure


@functools.cache
def _moved(case: str) -> int:
    obstacle = why_not()
    if obstacle is not None:
        raise NotMeasured(obstacle)
    with tempfile.TemporaryDirectory() as folder:
        moved, _ = json.loads(run("block_bytes", Path(folder), case))[case]
    return int(moved)
