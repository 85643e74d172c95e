"""What a history of delayed scaling takes in from a step's counts, by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from altgrad.quantization.kernel.counting.counters import COUNTERS
from altgrad.quantization.stored.amax_histories import remember

BEFORE = [1.0, 8.0, 2.0]  # newest first


@pytest.mark.parametrize(
    ("seen", "only_wider", "after"),
    [
        ({"amax": 0.5}, False, [0.5, 1.0, 8.0]),
        ({"amax": 0.5, "uses": 0.0}, False, BEFORE),
        ({"amax": 9.0, "overflow": 3.0}, True, [9.0, 1.0, 8.0]),
        ({"amax": 9.0}, True, BEFORE),  # nothing overflowed
        ({"amax": 5.0, "overflow": 3.0}, True, BEFORE),  # wider than the newest, not than all that is remembered
        ({"amax": 9.0, "overflow": 3.0, "uses": 0.0}, True, BEFORE),
    ],
)
def test_a_history_takes_in_an_amax(seen: dict[str, float], only_wider: bool, after: list[float]) -> None:
    histories = {name: torch.tensor(BEFORE) for name in ("delayed", "unused", "dynamic")}
    sites: Any = {
        ("layer", name): SimpleNamespace(delayed=name != "dynamic", history=history)
        for name, history in histories.items()
    }
    counts = torch.tensor([{"uses": 1.0, **seen}.get(name, 0.0) for name in COUNTERS])
    remember(sites, {("layer", "delayed"): counts, ("layer", "dynamic"): counts}, only_wider)
    assert {name: history.tolist() for name, history in histories.items()} == {
        "delayed": after,
        "unused": BEFORE,
        "dynamic": BEFORE,
    }
