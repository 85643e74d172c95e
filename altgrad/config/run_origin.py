"""What a run starts from: `start_from` and `start_keeps`, the weights of another run; `branch_from`, all of it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, Literal

from altgrad.text.error_hints import shown

FORGOTTEN = ("histories",)  # parts of a checkpoint that `branch_from` may leave out: the amaxes of delayed scaling
Kept = Literal["moments", "step"]  # of a checkpoint, besides the weights
_AT_STEP = re.compile(r".*@(\d+|last)", re.DOTALL)


def is_checkpoint(start_from: str | None) -> bool:
    """Whether the weights to start from are those of a checkpoint of a run: RUN@STEP or RUN@last."""
    return _AT_STEP.fullmatch(start_from or "") is not None


def kept_step(start_from: str | None, start_keeps: Collection[str]) -> int:
    """The step of a checkpoint RUN@STEP if the run keeps it, else 0."""
    at = (start_from or "").rpartition("@")[2]
    return int(at) if "step" in start_keeps and at.isdigit() else 0


def check_origin(origin: Mapping[str, Any]) -> None:
    """Raises ValueError unless `origin` is what `branch_from` takes."""
    run, step, forget = origin.get("run"), origin.get("step"), origin.get("forget", [])
    if origin.keys() - {"run", "step", "forget"} or not isinstance(run, str) or not run:
        raise ValueError(f"expected {{run: folder, step: number}}, maybe with forget, found {origin!r:.60}")
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise ValueError(f"step={shown(step)}: a whole number from 0; 0 is the parent's start")
    if not isinstance(forget, list) or not set(map(str, forget)) <= set(FORGOTTEN):
        raise ValueError(f"forget={forget!r:.60}: a list of {', '.join(FORGOTTEN)}")
