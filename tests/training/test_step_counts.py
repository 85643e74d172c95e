"""Counts of sites by hand: which number is which rate, which sites count, and what is read beside them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from altgrad.quantization.kernel.ranks import Ranks
from altgrad.training.step.step_counts import SiteCounts
from tests.support.rounding.rows_of_counts import row_of_counts

SITES = {
    ("a", "weight"): row_of_counts(nonzero=8, overflow=4, underflow=2, saturated=1, amax=3, scale=0.5, uses=1),
    ("a", "gradient"): row_of_counts(nonzero=16, overflow=1, underflow=3, saturated=5, amax=7, scale=2, uses=2),
    ("b", "gradient"): row_of_counts(nonzero=16, overflow=2, underflow=0, saturated=1, amax=9, scale=4, uses=1),
    ("b", "activation"): row_of_counts(nonzero=100, overflow=50, amax=5, scale=1, uses=0),  # not used in this step
    ("c", "weight"): row_of_counts(uses=1, scale=1),  # nothing but zeros: no share of anything
}
RATES = ("overflow_rate", "underflow_rate", "saturation_rate")


def counts() -> SiteCounts:
    found: Any = SimpleNamespace(counts=lambda: SITES, layers=dict.fromkeys("abc"))
    return SiteCounts(found, Ranks.joined())


def test_loss_and_other_numbers_are_read_beside_the_counts() -> None:
    assert counts().read(torch.tensor(2.5), torch.tensor([3.0, 4.0])) == (2.5, [3.0, 4.0])
    assert counts().read(torch.tensor(2.5), torch.tensor([])) == (2.5, [])


@pytest.mark.parametrize(
    ("site", "expected"),
    [
        (None, (7 / 40, 5 / 40, 7 / 40)),
        ("weight", (4 / 8, 2 / 8, 1 / 8)),
        ("gradient", (3 / 32, 3 / 32, 6 / 32)),
        ("activation", ()),
    ],
)
def test_rates_are_shares_of_the_values_that_are_not_zero(site: Any, expected: tuple[float, ...]) -> None:
    read = counts()
    assert read.rates(site) == {}
    read.read(torch.tensor(1.0), torch.tensor([1.0]))
    assert read.rates(site) == dict(zip(RATES, expected, strict=False))


def test_rows_are_those_of_the_used_sites_the_write_back_and_the_diagnostics() -> None:
    read = counts()
    read.read(torch.tensor(1.0), torch.tensor([1.0]))
    written: Any = SimpleNamespace(
        counts={"a": row_of_counts(nonzero=4, overflow=1, underflow=2, saturated=3, amax=6, scale=8)}
    )
    diagnosed = [
        {"layer": "a", "site": "weight", "stall_rate": 0.25},
        {"layer": "d", "site": "weight", "stall_rate": 1},
    ]
    found = {(r["layer"], r["site"]): r for r in read.rows(7, diagnosed, written)}
    assert {r["step"] for r in found.values()} == {7}
    assert set(found) == {
        ("a", "weight"),
        ("a", "gradient"),
        ("b", "gradient"),
        ("c", "weight"),
        ("a", "update"),
        ("d", "weight"),
    }
    named = {"layer": "a", "site": "weight", "step": 7, "amax": 3.0, "scale": 0.5, "stall_rate": 0.25}
    assert found["a", "weight"] == named | dict(zip(RATES, (0.5, 0.25, 0.125), strict=True))
    assert [found["a", "update"][rate] for rate in RATES] == [0.25, 0.5, 0.75]
    assert found["c", "weight"].keys() == {"layer", "site", "step", "amax", "scale"}
    assert found["d", "weight"] == {"layer": "d", "site": "weight", "step": 7, "stall_rate": 1}
    assert ("a", "update") not in {(r["layer"], r["site"]) for r in read.rows(7, [], None)}
