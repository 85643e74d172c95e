"""Bytes per parameter against numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from altgrad.config.recipe import Recipe
from altgrad.config.sizes.memory import bytes_per_parameter

COAT = {"format": "E4M3", "block": "1x128", "scale_rule": "real", "scale_format": "FP32", "range_expansion": True}
STORED = {"format": "E4M3", "master_weights": False}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"format": "FP32"}, 4 + 4 + 4),  # the master is what the GEMMs read
        ({}, 4 + 2 + 8),  # BF16 beside an FP32 master
        ({"format": "E4M3"}, 4 + 1 + 8),
        ({"format": "E4M3", "scale_granularity": "row"}, 4 + 1 + 8),
        ({"weight_format": "E4M3"}, 4 + 1 + 8),
        ({"activation_format": "E4M3"}, 4 + 2 + 8),
        (STORED, 1 + 8),
        (STORED | {"update_rounding": "kahan"}, 1 + 2 + 8),
        (STORED | {"update_rounding": "eco"}, 1 + 8),
        (STORED | {"gemms": {"fprop": {"hadamard": 16}}}, 1 + 1 + 8),  # as dgrad reads it, and rotated
        (STORED | {"gemms": {gemm: {"hadamard": 16} for gemm in ("fprop", "dgrad")}}, 1 + 2 * 1 + 8),
        ({"format": "E4M3", "update_rounding": "kahan"}, 4 + 1 + 8),  # with masters nothing is compensated
        ({"format": "E4M3", "scale_granularity": "1x32"}, 4 + 2 * (1 + 1 / 32) + 8),  # along in and along out
        ({"format": "E4M3", "scale_granularity": "128x128"}, 4 + (1 + 1 / 128**2) + 8),  # one serves both
        ({"format": "E2M1", "scale_granularity": "32x32"}, 4 + (0.5 + 1 / 1024) + 8),
        ({"format": "E3M2", "block_axis": "last", "scale_granularity": "1x32"}, 4 + (0.75 + 1 / 32) + 8),
        ({"format": "E4M3", "first_moment": {"format": "E4M3"}, "second_moment": {"format": "FP16"}}, 4 + 1 + 1 + 2),
        (STORED | {"first_moment": COAT, "second_moment": COAT}, 1 + 2 * (1 + 8 / 128)),
        ({"format": "E4M3", "phases": [{"from_step": 9, "format": "E2M1"}]}, 4 + 1 + 8),  # the phase that takes most
        ({"format": "E4M3", "phases": [{"from_share": 0.9, "format": "BF16"}]}, 4 + 2 + 8),
        ({"recipe": "mxfp8"}, 4 + 2 * (1 + 1 / 32) + 8),
        ({"recipe": "bf16_sr"}, 2 + 2 + 2),
        ({"recipe": "coat"}, 4 + 1 + 2 * (1 + 8 / 128)),
        ({"recipe": "fp8_eco"}, 1 + 8),
        ({"recipe": "nvfp4"}, 4 + (0.5 + 1 / 256) + 8),
    ],
    ids=str,
)
def test_bytes_of_a_weight_and_all_that_is_kept_for_it(fields: dict[str, Any], expected: float) -> None:
    assert bytes_per_parameter(Recipe(**fields)) == pytest.approx(expected, rel=1e-12)
