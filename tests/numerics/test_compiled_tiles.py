"""Compiled rounding in tiles along the first dimension: the eager numbers, and how often it reads what."""

from __future__ import annotations

import re

import pytest
import torch
from torch._inductor.utils import run_and_get_code

from altgrad.formats import find_format
from altgrad.quantization.kernel import tiles
from altgrad.quantization.kernel.compiled import INDUCTOR_OPTIONS, CompiledRounding, _graph
from altgrad.quantization.kernel.random import draw_key
from altgrad.quantization.kernel.round import spec_of
from altgrad.quantization.kernel.scaled_rounding import Mode, round_site

pytestmark = pytest.mark.compiled


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


@pytest.mark.parametrize(
    ("granularity", "rounding", "shape"),
    [
        ("1x16", "stochastic", (3, 33, 33)),  # 13 of 112 rows and no column are padding
        ("1x6", "nearest", (18, 20)),  # two rows at once, since four do not divide 6
        ("1x7", "nearest", (14, 9)),  # row by row
        ("4x8", "nearest", (24, 20)),
    ],
)
def test_tiles_along_the_first_dimension_are_the_eager_ones_bit_for_bit(granularity, rounding, shape, monkeypatch):
    monkeypatch.setattr(tiles, "_BEYOND_CACHE", 0)
    x = torch.randn(shape, generator=generator()) * torch.exp(2 * torch.randn(shape[-1], generator=generator()))
    x.view(-1)[:3] = torch.tensor([float("nan"), float("inf"), 0.0])
    fmt, key = find_format("E4M3"), torch.zeros(2, dtype=torch.int32)
    if rounding == "stochastic":
        key = draw_key(generator(), "cpu")
    mode = Mode(rounding, "dynamic", granularity, True, "1.0", last=False)
    eager, expected = round_site(x, spec_of(fmt), torch.zeros(0), key, mode)
    compiled, counts = CompiledRounding(fmt, rounding, granularity, dimension="first").with_counts(x, generator())
    assert torch.equal(compiled.view(torch.int32), eager.view(torch.int32))
    assert torch.equal(counts, expected)


@pytest.mark.parametrize(
    ("granularity", "shape"),
    [
        ("1x128", (24, 96)),  # tiles cut to 96 columns
        ("1x32", (24, 80)),  # five pieces of 16
        ("128x128", (96, 288)),  # tiles cut to 96 rows, and nine pieces of 32 columns
        ("1x32", (24, 40)),  # 24 columns are padded, and the padded rows stored
    ],
)
def test_edges_take_the_eager_values_and_no_branch_for_each_use_of_a_value(granularity, shape):
    x = torch.randn(shape, generator=generator()) * torch.exp(2 * torch.randn(shape[-1], generator=generator()))
    x.view(-1)[:3] = torch.tensor([float("nan"), float("inf"), 0.0])
    fmt, key = find_format("E4M3"), torch.zeros(2, dtype=torch.int32)
    mode = Mode("nearest", "dynamic", granularity, False, "1.0")
    eager, expected = round_site(x, spec_of(fmt), torch.zeros(0), key, mode)

    def rounded(x, spec, key):
        return round_site(x, spec, x.new_zeros(0), key, mode)

    torch._dynamo.reset()
    compiled = torch.compile(rounded, dynamic=False, options=INDUCTOR_OPTIONS)
    (values, counts), (code, *_) = run_and_get_code(compiled, x, spec_of(fmt), key)
    assert torch.equal(values.view(torch.int32), eager.view(torch.int32))
    assert torch.equal(counts, expected)
    assert code.count("all_zero()") <= 2  # of the padding alone; 17 where each use of a padded value has one


def loops(granularity: str, last: bool) -> list[str]:
    """The outermost loops of the code that Inductor writes for rounding a 2048 x 2048 tensor without counts.

    What that code computes is compared with the eager values.
    """
    mode = Mode("nearest", "dynamic", granularity, True, "1.0", last=last)

    def rounded(x, spec, key):
        return round_site(x, spec, x.new_zeros(0), key, mode)[0]

    torch._dynamo.reset()
    compiled = torch.compile(rounded, dynamic=False, options=INDUCTOR_OPTIONS)
    arguments = torch.randn(2048, 2048), spec_of(find_format("E4M3")), torch.zeros(2, dtype=torch.int32)
    found, (code, *_) = run_and_get_code(compiled, *arguments)
    assert torch.equal(found.view(torch.int32), rounded(*arguments).view(torch.int32))
    return re.split(r"(?=for\(int64_t x0=)", code)[1:]  # x0 is the variable of an outermost loop


def numbers(loop: str) -> tuple[list[int], dict[str, int]]:
    """(number of iterations of each nested loop, vectors that one iteration reads and writes)."""
    ranges = re.findall(r"for\(int64_t x\d=[^\n]*?<static_cast<int64_t>\((\d+)L\)", loop)
    vectors = {"x": r"::loadu\(in_ptr\d", "stored before": r"::loadu\(out_ptr\d", "written": r"\.store\(out_ptr\d"}
    return [int(n) for n in ranges], {name: len(re.findall(pattern, loop)) for name, pattern in vectors.items()}


def test_columns_of_32_are_read_twice_eight_rows_at_once_and_then_four_that_share_the_load_of_their_scales():
    compared, scaled, rounded = loops("1x32", last=False)
    # 2048 rows are 64 tiles of 4 times 8 rows; every loop runs along the 2048 columns
    assert numbers(compared) == ([256, 2048], {"x": 8, "stored before": 0, "written": 1})
    # the four maxima of a tile become its scale and the inverse of that
    assert numbers(scaled) == ([64, 2048], {"x": 0, "stored before": 4, "written": 2})
    # of each tile 8 times 4 rows
    assert numbers(rounded) == ([64, 8, 2048], {"x": 4, "stored before": 2, "written": 4})


def test_every_mode_has_a_code_of_its_own_so_that_none_counts_against_dynamos_limit_of_another():
    modes = [Mode("nearest", "dynamic", granularity, True, "1.0") for granularity in ("1x32", "1x16", "row")]
    codes = [_graph(mode, False)._torchdynamo_orig_callable.__code__ for mode in modes]  # type: ignore[attr-defined]
    assert len({id(code) for code in codes}) == 3
