"""How many bytes a GPU moves for a rounded transformer block, against the same block in BF16 autocast."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cuda_code.process import run, why_not

pytestmark = [
    pytest.mark.compiled,
    pytest.mark.xdist_group("cuda_code"),
    pytest.mark.skipif(why_not() is not None, reason=why_not() or ""),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("block_bytes")


def bytes_of(folder: Path, *cases: str) -> dict[str, int]:
    found: dict[str, int] = json.loads(run("block_bytes", folder, *cases))
    return found


def test_a_block_with_one_scale_per_tensor_moves_less_than_one_and_a_quarter_times_the_bytes_of_bfloat16(folder):
    moved = bytes_of(folder, "bf16", "tensor")
    tokens, width, of_bfloat16 = 16 * 512, 512, 2
    in_and_out = 7 + 9  # widths that the four linear layers read and write, again for each of the three GEMMs
    assert moved["bf16"] > 3 * in_and_out * tokens * width * of_bfloat16
    assert moved["tensor"] < 1.25 * moved["bf16"]


@pytest.mark.slow
@pytest.mark.parametrize(("case", "bound"), [("tensor, counts", 1.25), ("delayed", 1.15), ("mxfp8", 1.5)])
def test_so_do_blocks_with_counts_delayed_scales_and_tiles_along_both_axes_within_their_bounds(folder, case, bound):
    moved = bytes_of(folder, "bf16", case)
    assert moved[case] < bound * moved["bf16"]
