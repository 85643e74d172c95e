"""Weights without masters, by hand: what a write-back adds up, counts, draws and refuses."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from altgrad.config.recipe import Recipe
from altgrad.formats import FORMATS, NumberFormat
from altgrad.quantization.kernel.counting.counters import COUNTERS
from altgrad.quantization.quantize import quantize_model
from altgrad.quantization.quantized_model import QuantizedModel
from altgrad.quantization.stored.write_back import WriteBack, _on

UNSCALED = {"format": "E4M3", "scaling": "none", "master_weights": False}  # steps of 1/8 from 1 to 2
SCALED, LEAST = "scaled to a largest value of 1", f"torch.float16 to {np.finfo(np.float16).smallest_subnormal:.3g}"


def stored(**fields: Any) -> tuple[QuantizedModel, WriteBack, Tensor]:
    """One layer of 64 x 64 weights of 1, its write-back, and its weight."""
    model = nn.Sequential(nn.Linear(64, 64, bias=False))
    nn.init.ones_(model[0].weight)
    quantized = quantize_model(model, Recipe(**UNSCALED | fields))
    assert quantized.write_back is not None
    return quantized, quantized.write_back, model[0].weight


def moved(weight: Tensor, value: float) -> None:
    with torch.no_grad():
        weight.fill_(value)


def test_corrections_are_stored_minus_intended_and_add_up_until_forgotten() -> None:
    _, write_back, weight = stored()
    assert write_back.counts == {}
    moved(weight, 1.0625 + 0.03125)  # to 1.125: 1/32 above
    write_back()
    assert set(weight.flatten().tolist()) == {1.125}
    assert set(write_back.corrections["0"].flatten().tolist()) == {0.03125}
    moved(weight, 1.1875 + 0.015625)  # to 1.25: 3/64 above
    write_back()
    assert set(write_back.corrections["0"].flatten().tolist()) == {0.03125 + 0.046875}
    moved(weight, 1.25 + 0.0078125)  # to 1.25: 1/128 below
    write_back()
    assert set(write_back.corrections["0"].flatten().tolist()) == {0.03125 + 0.046875 - 0.0078125}
    assert not write_back.corrections["0"].requires_grad and list(write_back.counts) == ["0"]
    write_back.forget()
    assert not write_back.corrections["0"].any() and write_back.counts == {}


def test_a_trifling_update_of_the_largest_weight_leaves_every_other_weight_where_it_is() -> None:
    """448 x 2^-9 is the largest; a little more must not double the scale, at which the smallest would round to zero."""
    _, write_back, weight = stored(scaling="dynamic")
    moved(weight, 2.0**-9 * 2.0**-9)
    with torch.no_grad():
        weight[0, 0] = 448 * 2.0**-9
    write_back()
    before = weight.detach().clone()
    assert float(before[1, 1]) == 2.0**-18
    with torch.no_grad():
        weight[0, 0] *= 1 + 1e-4
    write_back()
    assert torch.equal(weight, before)


@pytest.mark.parametrize("fmt", ["E7M0", "E2M1", "E4M3", "E0M7"])
def test_the_amax_of_an_update_is_that_of_the_weights_which_were_to_be_stored(fmt: str) -> None:
    """In E7M0 a largest weight of 1.2 becomes 1 under the scale of 1, as if it had been 1 before."""
    model = nn.Sequential(nn.Linear(4, 4, bias=False))
    quantized = quantize_model(model, Recipe(format=fmt, master_weights=False))
    with torch.no_grad():
        model[0].weight.fill_(0.25)
        largest = float(FORMATS[fmt].max) * (1 + 2.0 ** -(FORMATS[fmt].mantissa_bits + 2))
        scale = 2.0 ** -math.ceil(math.log2(largest))
        model[0].weight[1, 2] = -largest * scale
    assert quantized.write_back is not None
    quantized.write_back()
    counts = dict(zip(COUNTERS, quantized.write_back.counts["0"].tolist(), strict=True))
    assert counts["amax"] == largest * scale and counts["overflow"] == 0
    assert float(model[0].weight.detach()[1, 2]) == -float(FORMATS[fmt].max) * scale


ROTATIONS: dict[str, dict[str, Any]] = {
    "quartet": {"recipe": "quartet"},
    "a tensor": {"format": "E4M3", "gemms": {"fprop": {"hadamard": 16}}},
    "tiles": {"format": "E4M3", "scale_granularity": "1x32", "gemms": {"fprop": {"hadamard": 16}}},
    "redrawn": {"format": "E4M3", "gemms": {"fprop": {"hadamard": 16, "hadamard_signs": "redrawn"}}},
}  # fmt: skip


@pytest.mark.parametrize("fields", ROTATIONS.values(), ids=ROTATIONS)
def test_a_stored_weight_is_not_rotated_however_its_gemms_rotate_it(fields: dict[str, Any]) -> None:
    """It stays near the weight that was to be stored; turned into other directions it would be sqrt(2) away."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64, bias=False))
    wanted = model[0].weight.detach().clone()
    quantized = quantize_model(model, Recipe(master_weights=False, **fields))
    first = model[0].weight.detach().clone()
    assert float((first - wanted).norm() / wanted.norm()) < (0.03 if "format" in fields else 0.25)
    assert quantized.write_back is not None
    for step in range(1, 4):
        quantized.begin_step(0, step)
        quantized.write_back()
        assert torch.equal(model[0].weight, first) and torch.equal(quantized.layers["0"].rounded_weight(), first)
    if fields.keys() == {"format", "gemms"}:  # torch's own cast, amax in (224, 448]
        scale = 2.0 ** np.ceil(np.log2(float(wanted.abs().max()) / 448))
        assert torch.equal(first, (wanted / scale).to(torch.float8_e4m3fn).float() * scale)


@pytest.mark.parametrize("block", ["tensor", "row", "1x16", "8x8"])
@pytest.mark.parametrize("fmt", FORMATS.values(), ids=str)
def test_what_is_stored_stays_as_it_is_stored_again(fmt: NumberFormat, block: str) -> None:
    """Finite or not: else weights would creep from step to step without an update, or an overflow heal unseen."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 20, bias=False))
    with torch.no_grad():
        model[0].weight.mul_(torch.logspace(-6, 6, 48))
        model[0].weight[:3, 0] = torch.tensor([math.inf, -math.inf, math.nan])
    recipe = {"format": fmt.name, "gemms": {"fprop": {"weight": {"block": block}}}}
    quantized = quantize_model(model, Recipe(master_weights=False, **recipe))
    first = model[0].weight.detach().clone()
    for _ in range(2):
        assert quantized.write_back is not None
        quantized.write_back()
        assert torch.equal(model[0].weight.nan_to_num(0.5), first.nan_to_num(0.5))
        assert torch.equal(quantized.layers["0"].rounded_weight().nan_to_num(0.5), first.nan_to_num(0.5))
    kept = first[:2, 0].tolist()
    assert (kept == [math.inf, -math.inf]) == (fmt.overflow == "inf") and bool(first[2, 0].isnan())


def test_making_the_model_is_no_step() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    nn.init.constant_(model[0].weight, 1.03)
    write_back = quantize_model(model, Recipe(**UNSCALED)).write_back
    assert write_back is not None and set(model[0].weight.flatten().tolist()) == {1.0}
    assert not write_back.corrections["0"].any() and write_back.counts == {}


def test_a_shared_weight_is_rounded_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    write_back = quantize_model(model, Recipe(**UNSCALED)).write_back
    assert write_back is not None
    write_back()
    assert list(write_back.corrections) == list(write_back.counts) == ["0", "1"]


def drawn(write_back: WriteBack, weight: Tensor) -> tuple[float, ...]:
    """What stochastic rounding makes of weights halfway between 1 and 1.125."""
    moved(weight, 1.0625)
    write_back()
    values = tuple(weight.flatten().tolist())
    assert set(values) == {1.0, 1.125}
    return values


RECORDED = {  # by seed, step and write-back: which of the first 16 weights halfway between two values go up
    (0, 0, 0): "0001011011010100",
    (1, 2, 0): "0111101110110000",
    (1, 2, 1): "1010100010100110",
}


def test_the_numbers_of_a_step_are_those_that_every_version_draws() -> None:
    """Recorded: a run that goes on under a later version must be rounded as it would have been."""
    _, write_back, weight = stored(update_rounding="stochastic")
    found = {}
    for seed, step, number in RECORDED:
        if number == 0 and seed:
            write_back.begin_step(seed, step)
        found[seed, step, number] = "".join("01"[value > 1] for value in drawn(write_back, weight)[:16])
    assert found == RECORDED


def test_every_write_back_of_every_step_and_seed_draws_its_own_numbers_and_the_same_ones_again() -> None:
    _, write_back, weight = stored(update_rounding="stochastic")
    found = {}
    for seed, step in ((1, 1), (1, 2), (2, 1)):
        write_back.begin_step(seed, step)
        for number in range(3):
            found[seed, step, number] = drawn(write_back, weight)
    assert len(set(found.values())) == len(found) == 9
    _, another, weight = stored(update_rounding="stochastic")
    another.begin_step(1, 2)
    assert [drawn(another, weight) for _ in range(3)] == [found[1, 2, number] for number in range(3)]


@pytest.mark.parametrize(("update", "operands", "values"), [("nearest", "stochastic", 1), ("stochastic", "nearest", 2)])
def test_a_write_back_rounds_as_updates_do_and_not_as_operands(update: str, operands: str, values: int) -> None:
    _, write_back, weight = stored(update_rounding=update, rounding=operands)
    write_back.begin_step(0, 1)
    moved(weight, 1.0625)
    write_back()
    assert len(set(weight.flatten().tolist())) == values


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_each_layer_is_rounded_in_its_own_format_with_numbers_of_its_own(rounding: str) -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    recipe = Recipe(**UNSCALED, layer_formats={"1": "E4M3"}, update_rounding=rounding)
    write_back = quantize_model(model, recipe).write_back
    assert write_back is not None
    write_back.begin_step(0, 1)
    for layer in model:
        moved(layer.weight, 1.0625)
    write_back()
    assert torch.equal(model[0].weight, model[1].weight) == (rounding == "nearest")


@pytest.mark.parametrize(
    ("dtype", "fields", "words"),
    [
        (torch.bfloat16, {"format": "E5M8"}, "E5M8 has 8 mantissa bits, torch.bfloat16 has 7"),
        (torch.float16, {"format": "E4M11"}, "E4M11 has 11 mantissa bits, torch.float16 has 10"),
        (torch.float16, {"format": "BF16"}, "without a scale BF16 reaches 3.3895e+38, torch.float16 65504"),
        (
            torch.float16,
            {"format": "E7M0", "scaling": "none"},
            "without a scale E7M0 reaches 1.8447e+19, torch.float16 65504",
        ),
        (torch.float16, {"format": "E5M2"}, f"{SCALED} E5M2 has values down to 4.66e-10, {LEAST}"),
        (torch.float16, {"format": "E7M0"}, f"{SCALED} E7M0 has values down to 1.18e-38, {LEAST}"),
        (
            torch.float16,
            {"format": "E6M1", "scaling": "none"},
            "without a scale E6M1 reaches 6.4425e+09, torch.float16 65504",
        ),
        (
            torch.float16,
            {"format": "E5M3b23", "scaling": "none"},
            f"without a scale E5M3b23 has values down to 2.98e-08, {LEAST}",
        ),
        (torch.float8_e4m3fn, {}, "formats are simulated in float32"),
    ],
    ids=str,
)
def test_a_dtype_that_cannot_hold_the_grid_is_refused_with_the_reason(
    dtype: torch.dtype, fields: Any, words: str
) -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False)).to(dtype)
    recipe = Recipe(**{"format": "E4M3", "master_weights": False} | fields)
    with pytest.raises(ValueError) as caught:
        quantize_model(model, recipe)
    bits = f"layer 0 has a weight of {dtype}, which cannot hold {recipe.format} exactly ({words}); use a float32 model"
    assert bits in str(caught.value)


@pytest.mark.parametrize(
    ("dtype", "fields"),
    [
        (torch.float64, {"format": "E4M11"}),
        (torch.bfloat16, {"format": "BF16"}),
        (torch.bfloat16, {"format": "E7M0", "scaling": "none"}),
        (torch.float16, {"format": "E4M3", "scaling": "none"}),
        (torch.float16, {"format": "E4M10"}),
        (torch.bfloat16, {"format": "E7M0"}),
        (torch.float16, {"format": "E5M2", "scaling": "none"}),
    ],
    ids=str,
)
def test_a_dtype_that_holds_every_value_is_taken(dtype: torch.dtype, fields: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False)).to(dtype)
    for rounding in ("nearest", "stochastic"):
        quantized = quantize_model(
            copy.deepcopy(model), Recipe(**fields, master_weights=False, update_rounding=rounding)
        )
        assert quantized.layers["0"].weight.dtype == dtype and quantized.write_back is not None
        assert quantized.write_back.corrections["0"].dtype == torch.float32


@pytest.mark.parametrize("rule", ["kahan", "eco", "eco_stochastic"])
def test_an_error_that_is_kept_needs_float32(rule: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False)).to(torch.bfloat16)
    with pytest.raises(ValueError) as caught:
        quantize_model(model, Recipe(format="E4M3", master_weights=False, update_rounding=rule))
    assert str(caught.value) == (
        f"update_rounding='{rule}': layer 0 has a weight of torch.bfloat16, in which the error that is to be kept is "
        "lost before it is measured; use a float32 model"
    )


def test_what_is_kept_follows_a_model_that_moves() -> None:
    here, elsewhere = torch.device("cpu"), torch.device("meta")
    kept = {"a": torch.ones(2)}
    assert _on(here, kept, "a") is kept["a"]
    assert _on(elsewhere, kept, "a") is kept["a"] and kept["a"].is_meta
    back = _on(here, kept, "a")  # what was nowhere begins at nothing
    assert back is kept["a"] and back.device == here and back.tolist() == [0, 0]
