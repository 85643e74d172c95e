"""Each published recipe trains, and what its GEMMs multiply lies on the grids that it names.

The grids are written from the formats' definitions here.  A scale is not looked up: values that share one lie on
scale x grid for some scale, and their largest is then scale x one of the grid's values, which are all tried.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from altgrad.config.cast import Cast
from altgrad.config.published import published_names
from altgrad.config.train_config import TrainConfig
from altgrad.quantization.gemms import products
from altgrad.training.trainer import Trainer
from tests.support.runs.small_runs import SMALL

_TOLERANCE = 1e-4  # relative; scales and products with them are rounded to FP32
_LOOKED_AT = 24  # groups of values that share a scale


def floating(exponent_bits: int, mantissa_bits: int, bias: int, reserved: int = 0) -> list[float]:
    """Positive values of a format, by its definition."""
    codes = range(1, 2 ** (exponent_bits + mantissa_bits) - reserved)
    pairs = [divmod(code, 2**mantissa_bits) for code in codes]
    return [
        math.ldexp(m / 2**mantissa_bits + (e > 0), max(e, 1) - bias)
        for e, m in pairs
    ]  # fmt: skip


GRIDS = {
    "E4M3": floating(4, 3, 7, reserved=1),
    "E5M2": floating(5, 2, 15, reserved=4),
    "E4M3b11": floating(4, 3, 11),
    "E3M2": floating(3, 2, 3),
    "E2M1": [0.5, 1, 1.5, 2, 3, 4, 6],
    "E0M7": [k / 128 for k in range(1, 128)],
}


def on_grid(values: Tensor, magnitudes: Tensor) -> bool:
    """Whether all values are 0 or some scale times a magnitude."""
    values = values.abs().double().flatten()
    largest = values.max()
    if largest == 0:
        return True
    scaled = values / largest * magnitudes[:, None]  # (scales tried, values)
    place = torch.searchsorted(magnitudes, scaled.contiguous()).clamp(1, len(magnitudes) - 1)
    distance = torch.minimum((scaled - magnitudes[place - 1]).abs(), (scaled - magnitudes[place]).abs())
    return bool(((distance <= _TOLERANCE * scaled) | (scaled == 0)).all(dim=1).any())


def groups(operand: Tensor, cast: Cast) -> list[Tensor]:
    """Values that share a scale, of an operand (across, along what its GEMM contracts)."""
    if cast.block == "tensor":
        return [operand[:64, :64]]
    if cast.block == "row":
        return list(operand[:_LOOKED_AT])
    across, along = cast.tile or (0, 0)
    found = [part for rows in operand.split(across) for part in rows.split(along, dim=1)]
    return found[:_LOOKED_AT]


def captured(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Tensor], list[float]]:
    """What the three GEMMs of the first layer multiplied in the last step, (across, contracted), and the losses."""
    calls: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def record(name: str) -> None:
        real = getattr(products, name)

        def recorded(a: Tensor, b: Tensor, *rest: Any) -> Tensor:
            calls.setdefault(name, []).append(
                (a.detach().reshape(-1, a.shape[-1]), b.detach().reshape(-1, b.shape[-1]))
            )
            return real(a, b, *rest)

        monkeypatch.setattr(products, name, recorded)

    for name in ("product", "dgrad", "wgrad"):
        record(name)
    trainer = Trainer(config)
    losses = []
    for _ in range(config.max_steps):
        calls.clear()
        losses.append(trainer.step().record["loss"])
    x, weight = calls["product"][0]
    dy, weight_of_dgrad = calls["dgrad"][-1]
    dy_of_wgrad, x_of_wgrad = calls["wgrad"][-1]
    operands = {"fprop.activation": x, "fprop.weight": weight, "dgrad.gradient": dy}
    operands |= {"dgrad.weight": weight_of_dgrad.T, "wgrad.gradient": dy_of_wgrad.T, "wgrad.activation": x_of_wgrad.T}
    return operands, losses


PHASES = [(name, number) for name in published_names() for number in range(len(TrainConfig(recipe=name).phases) + 1)]


@pytest.mark.parametrize(("name", "phase"), PHASES, ids=[f"{name}-{phase}" for name, phase in PHASES])
def test_a_recipe_trains_and_rounds_what_it_says(name: str, phase: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config = SMALL.altered(recipe=name, n_layer=2, n_embd=64, max_steps=3)
    if config.phases and phase == 0:
        config = config.altered(phases=[])
    operands, losses = captured(config, monkeypatch)  # of the last step, which is in the last phase
    assert len(losses) == 3 and all(math.isfinite(loss) and loss < 8 for loss in losses)
    for operand, cast in config.in_phase(phase).casts_at("h.0.attn.qkv").items():
        values = operands[str(operand)]
        if cast.format == "BF16":
            assert torch.equal(values, values.bfloat16().float())
            assert values.unique().numel() > 256  # high precision is more than any format of 8 bits has
            continue
        magnitudes = torch.tensor(GRIDS[cast.format], dtype=torch.float64)
        assert all(on_grid(group, magnitudes) for group in groups(values, cast)), operand
        coarser = magnitudes[1::2].contiguous()  # every other code: a mantissa bit less
        assert not all(on_grid(group, coarser) for group in groups(values, cast)), operand


def test_values_off_the_grid_are_seen() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(32, generator=generator)
    for magnitudes in GRIDS.values():
        assert not on_grid(values, torch.tensor(magnitudes, dtype=torch.float64))
