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


def counted(folder: Path, *cases: str) -> dict[str, tuple[int, int]]:
    """Case -> (bytes, launches) of a block."""
    return {case: tuple(found) for case, found in json.loads(run("block_bytes", folder, *cases)).items()}


def plain(folder: Path) -> dict[str, tuple[int, int]]:
    return counted(folder, "bf16", "tensor")


def test_a_block_with_one_scale_per_tensor_moves_less_than_one_and_a_quarter_times_the_bytes_of_bfloat16(folder):
    (of_bfloat16, _), (of_tensor, _) = plain(folder).values()
    tokens, width, size = 16 * 512, 512, 2
    in_and_out = 7 + 9  # widths that the four linear layers read and write, again for each of the three GEMMs
    assert of_bfloat16 > 3 * in_and_out * tokens * width * size
    assert of_tensor < 1.25 * of_bfloat16


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "bound"), [("tensor, counts", 1.25), ("delayed", 1.05), ("mxfp8", 1.5), ("te_current", 1.6)]
)
def test_so_do_blocks_with_counts_delayed_scales_and_tiles_along_both_axes_within_their_bounds(folder, case, bound):
    assert counted(folder, case)[case][0] < bound * plain(folder)["bf16"][0]


@pytest.mark.slow
def test_counts_of_the_twelve_roundings_of_a_block_cost_two_launches_in_each_of_its_graphs(folder):
    (_, plain_launches), (_, launches) = plain(folder)["tensor"], counted(folder, "tensor, counts")["tensor, counts"]
    assert launches <= plain_launches + 4
