"""The counts that a GPU adds as fields of one integer are those that a CPU counts one by one."""

from __future__ import annotations

import pytest
import torch

from altgrad.formats import FORMATS
from altgrad.quantization.kernel import scaled_rounding
from altgrad.quantization.kernel.counting import counters
from altgrad.quantization.kernel.round import spec_of
from altgrad.quantization.kernel.scaled_rounding import Mode, rounded_with_counts

MODES = {
    "unscaled": Mode("nearest", "none", "tensor", True, 1.0),
    "tensor": Mode("nearest", "dynamic", "tensor", True, 1.0),
    "row": Mode("nearest", "dynamic", "row", False, 1.0),
    "columns": Mode("nearest", "dynamic", "row", True, 1.0, last=False),
    "1x32": Mode("nearest", "dynamic", "1x32", True, 1.0),
    "1x32 first": Mode("nearest", "dynamic", "1x32", True, 1.0, last=False),
    "128x128": Mode("nearest", "dynamic", "128x128", False, 1.0),
}
# One value; rows whose numbers do not fit into 15 bits; more rows and tiles than one program adds; 3 dimensions; a
# prime number of rows, which no stage divides.
SHAPES = [(1,), (7, 5), (2, 40_001), (9000, 8), (3, 5, 64), (4099, 4), (32, 32_768)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_every_count_is_the_same(mode, shape, monkeypatch):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 10
    x = torch.where(x.abs() < 3, torch.zeros(()), x * 2.0 ** torch.arange(-40, 60, dtype=torch.float32)[x.abs().long()])
    x.view(-1)[: min(3, x.numel() - 1)] = torch.tensor([torch.nan, torch.inf, 1e-30])[: min(3, x.numel() - 1)]
    if shape == (32, 32_768):
        x = x.abs() + 1  # every value counts: a row of 2^15 is one more than 15 bits hold
    arguments = (x, spec_of(FORMATS["E5M2"], 1), torch.zeros(0), torch.zeros(2, dtype=torch.int32), MODES[mode])
    expected = rounded_with_counts(*arguments)[1]
    monkeypatch.setattr(scaled_rounding, "count", lambda *given: counters._packed(*given[:-1]))
    assert [float(number) for number in rounded_with_counts(*arguments)[1]] == [float(number) for number in expected]
