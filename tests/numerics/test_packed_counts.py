"""The counts that a GPU adds as fields of one integer are those that a CPU counts one by one."""

from __future__ import annotations

import pytest
import torch

from altgrad.formats import FORMATS
from altgrad.quantization.kernel import scaled_rounding
from altgrad.quantization.kernel.counting import counters
from altgrad.quantization.kernel.round import spec_of
from altgrad.quantization.kernel.scaled_rounding import Mode, rounded_with_counts
from altgrad.quantization.kernel.tiles import finite_amax

MODES = {
    "unscaled": Mode("nearest", "none", "tensor", True, "1.0"),
    "tensor": Mode("nearest", "dynamic", "tensor", True, "1.0"),
    "delayed": Mode("nearest", "delayed", "tensor", True, "1.0", filled=True),
    "row": Mode("nearest", "dynamic", "row", False, "1.0"),
    "columns": Mode("nearest", "dynamic", "row", True, "1.0", last=False),
    "1x32": Mode("nearest", "dynamic", "1x32", True, "1.0"),
    "1x32 first": Mode("nearest", "dynamic", "1x32", True, "1.0", last=False),
    "128x128": Mode("nearest", "dynamic", "128x128", False, "1.0"),
}
# One value; rows whose numbers do not fit into 15 bits; more rows and tiles than one program adds; 3 dimensions; a
# prime number of rows, which no stage divides.
SHAPES = [(1,), (7, 5), (2, 40_001), (9000, 8), (3, 5, 64), (8209, 4), (32, 32_768)]


def counted(mode: Mode, x: torch.Tensor, monkeypatch) -> tuple[list[float], list[float]]:
    """(counts as on a GPU, counts one by one)."""
    arguments = (x, spec_of(FORMATS["E5M2"], 1), torch.tensor([0.0, 2.0]), torch.zeros(2, dtype=torch.int32), mode)
    expected = rounded_with_counts(*arguments)[1]

    def packed(values, scaled, magnitude, fmt, amax, scale, in_bits):
        if mode.counts_amax_alone:  # where a GPU has the amax of each row
            amax = finite_amax(values, "row", True)
        return counters._packed(values, scaled, magnitude, fmt, amax, scale)

    monkeypatch.setattr(scaled_rounding, "count", packed)
    found = rounded_with_counts(*arguments)[1]
    return [float(number) for number in found], [float(number) for number in expected]


def drawn(shape: tuple[int, ...]) -> torch.Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 10
    x = torch.where(x.abs() < 3, torch.zeros(()), x * 2.0 ** torch.arange(-40, 60, dtype=torch.float32)[x.abs().long()])
    x.view(-1)[: min(3, x.numel() - 1)] = torch.tensor([torch.nan, torch.inf, 1e-30])[: min(3, x.numel() - 1)]
    return x


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_every_count_is_the_same(mode, shape, monkeypatch):
    x = drawn(shape)
    if shape == (32, 32_768):
        x = x.abs() + 1  # every value counts: a row of 2^15 is one more than 15 bits hold
    ours, expected = counted(MODES[mode], x, monkeypatch)
    assert ours == expected


@pytest.mark.parametrize("columns", [64, 40_000])
@pytest.mark.parametrize("mode", MODES)
def test_so_it_is_in_groups_of_a_few_rows_or_tiles(mode, columns, monkeypatch):
    monkeypatch.setattr(counters, "_AT_ONCE", 4)
    monkeypatch.setattr(counters, "_GROUP", 6)
    ours, expected = counted(MODES[mode], drawn((18, columns)), monkeypatch)
    assert ours == expected
