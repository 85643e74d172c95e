"""A stored tensor is rounded once: its dtype holds its whole grid, or is refused.  Oracle: torch's conversion."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from altgrad.config.cast import Cast
from altgrad.config.recipe import Recipe
from altgrad.formats import find_format
from altgrad.quantization.quantize import quantize_model
from altgrad.quantization.stored.stored_dtype import dtype_obstacle

FORMATS = (
    "E2M1",
    "E3M2",
    "E3M4",
    "E4M3",
    "E4M7",
    "E4M8",
    "E4M10",
    "E5M1",
    "E5M2",
    "E5M3b22",
    "E5M3b23",
    "E6M1",
    "E7M0",
)
REAL = {"format": "E4M3", "scale_rule": "real", "scale_format": "FP32"}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scaling", ["none", "dynamic", 2.0**-9, 2.0**9], ids=str)
def test_a_dtype_is_taken_that_holds_each_value_of_the_grid(
    name: str, dtype: torch.dtype, scaling: str | float
) -> None:
    """Under a scale from the amax, of the grid for values up to 1."""
    fmt = find_format(name)
    fields: dict[str, Any] = {"scaling": scaling} if isinstance(scaling, str) else {"static_scale": scaling}
    cast = Cast(**({"format": name, "scaling": "static"} | fields))
    scale = 2.0 ** math.ceil(math.log2(1 / fmt.max)) if scaling == "dynamic" else fields.get("static_scale", 1.0)
    grid = torch.tensor([scale * fmt.value(index) for index in range(fmt.max_index + 1)], dtype=torch.float64)
    assert (dtype_obstacle(dtype, cast, 1.0) is None) == bool(torch.equal(grid.to(dtype).double(), grid))


def trained(dtype: torch.dtype, moments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The moments of a weight after a step of AdamW."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16)).to(dtype)
    quantized = quantize_model(model, Recipe(format="E4M3", first_moment=moments, second_moment=moments))
    optimizer = torch.optim.AdamW(model.parameters())
    quantized.begin_step(0, 1)
    model(torch.randn(8, 16, dtype=dtype)).square().mean().backward()
    optimizer.step()
    quantized.after_optimizer(optimizer)
    state = optimizer.state[model[0].weight]
    return state["exp_avg"], state["exp_avg_sq"]


@pytest.mark.parametrize(
    ("dtype", "moments", "words"),
    [
        (torch.bfloat16, REAL, "a real scale has 24 significant bits, torch.bfloat16 has 8"),
        (torch.float16, REAL, "a real scale has 24 significant bits, torch.float16 has 11"),
        (torch.bfloat16, {"format": "FP16"}, "FP16 has 10 mantissa bits, torch.bfloat16 has 7"),
        (torch.float16, {"format": "BF16"}, "without a scale BF16 reaches 3.3895e+38, torch.float16 65504"),
        (
            torch.float16,
            {"format": "E4M3", "block": "1x32"},
            f"E4M3 under a scale has values of any size, torch.float16 none below {2.0**-24:.3g}",
        ),
        (
            torch.bfloat16,
            {"format": "E4M3", "range_expansion": True},
            "its expanded values are no powers of two times those of a format",
        ),
    ],
    ids=str,
)
def test_moments_that_would_be_rounded_twice_are_refused(dtype: torch.dtype, moments: Any, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        trained(dtype, moments)
    said = str(caught.value)
    assert said.startswith(f"first_moment: the optimizer keeps it in {dtype}, which cannot hold {moments['format']}")
    assert f"exactly ({words}); use a float32 model, or leave first_moment out" in said and "\n" not in said


@pytest.mark.parametrize(
    ("dtype", "moments"),
    [
        (torch.bfloat16, {"format": "BF16"}),
        (torch.bfloat16, {"format": "E4M3", "block": "1x32"}),
        (torch.float16, {"format": "FP16"}),
        (torch.float32, REAL | {"range_expansion": True}),
        (torch.float64, REAL),
    ],
    ids=str,
)
def test_moments_that_their_dtype_holds_are_rounded(dtype: torch.dtype, moments: Any) -> None:
    assert all(one.dtype == dtype and one.any() for one in trained(dtype, moments))
