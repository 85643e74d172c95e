"""SQNR of a recipe's cast from a histogram alone is what the kernel does to a tensor with that histogram."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from altgrad.config.cast import Cast
from altgrad.config.train_config import TrainConfig
from altgrad.diagnostics.measures.value_histogram import counts, row
from altgrad.formats import FORMATS, SPLITS
from altgrad.quantization.fake_quantize import fake_quantize
from altgrad.text.number_text import binary
from dashboard.data.cast_fits import OPERANDS, Histogram, cast_fit, ranking, recipe_casts, rotates_weight
from dashboard.figures.tensor_figures import ranking_figure, tensor_figure, tensor_scale

SIZE = 512
CASTS = {cast: names for site in OPERANDS for cast, names in recipe_casts(site).items()}
MORE = [
    *(Cast(format="E4M3", block="1x32", scale_rule=rule) for rule in ("floor", "even", "ceil_amax")),
    Cast(format="E2M1", block="1x32", scale_rule="even"),  # a quarter of the amaxes round up to the next power of two
    Cast(format="E2M1", block="1x2"),  # each value has one other beside it
    Cast(format="E2M1", rounding="toward_zero"),
    Cast(format="E5M2", scaling="none"),
    Cast(format="E4M3", scaling="static", static_scale=0.25),
]


@pytest.fixture(scope="module")
def tensor() -> torch.Tensor:
    """Independent values over 12 binades, evenly spread within each; some zeros."""
    draw = np.random.default_rng(3)
    exponents = np.clip(np.round(draw.normal(-9, 2.0, (SIZE, SIZE))), -16, -5)
    values = 2.0**exponents * draw.uniform(1, 2, exponents.shape) * draw.choice([-1, 1], exponents.shape)
    return torch.from_numpy(np.where(draw.random(values.shape) < 0.02, 0.0, values).astype(np.float32))


@pytest.fixture(scope="module")
def histogram(tensor: torch.Tensor) -> Histogram:
    return histogram_of(tensor)


TENSORS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "Gaussian": lambda draw: draw.normal(0, 0.02, (SIZE, SIZE)),  # as trained weights
    "uniform": lambda draw: draw.uniform(-0.051, 0.051, (SIZE, SIZE)),  # as torch makes the weights of a linear layer
    "Student": lambda draw: draw.standard_t(3, (SIZE, SIZE)) * 1e-3,  # as gradients
}


def stored(values: str) -> tuple[torch.Tensor, Histogram]:
    """A tensor with some zeros, and what a run stores of it."""
    drawn = TENSORS[values](np.random.default_rng(3))
    drawn[np.random.default_rng(4).random(drawn.shape) < 0.02] = 0.0
    tensor = torch.from_numpy(drawn.astype(np.float32))
    return tensor, histogram_of(tensor).with_amax(float(tensor.abs().max()))


def histogram_of(tensor: torch.Tensor) -> Histogram:
    kept = row([*counts(tensor).tolist()])
    return Histogram(kept["first_exponent"], tuple(kept["exponents"]), kept["zeros"])


@pytest.mark.parametrize("cast", [*CASTS, *MORE], ids=lambda cast: CASTS.get(cast, [str(cast)])[0])
@pytest.mark.parametrize("values", TENSORS)
def test_the_noise_from_the_histogram_is_that_of_the_kernel(values: str, cast: Cast) -> None:
    tensor, histogram = stored(values)
    if cast.amax_factor != 1 or cast.scaling == "delayed":
        cast = cast.model_copy(update={"scaling": "dynamic"})
    torch.manual_seed(1)
    rounded = fake_quantize(tensor, cast)
    noise, power = (rounded - tensor).double().square().mean().item(), tensor.double().square().mean().item()
    found = cast_fit(histogram, cast)
    if noise == 0:
        assert math.isinf(found.sqnr_db)
        return
    assert found.sqnr_db == pytest.approx(10 * math.log10(power / noise), abs=0.7)
    if not cast.hadamard:
        lost = ((rounded == 0) & (tensor != 0)).sum().item() / (tensor != 0).sum().item()
        assert found.underflow == pytest.approx(lost, abs=0.006)


@pytest.mark.parametrize("values", TENSORS)
def test_the_share_beyond_a_scale_that_is_too_small_is_that_of_the_tensor(values: str) -> None:
    tensor, histogram = stored(values)
    scale = float(tensor.abs().median()) / 6  # the largest E2M1 value, 6, then lies in the middle of the values
    beyond = (tensor.abs() > 6 * scale).sum().item() / (tensor != 0).sum().item()
    found = cast_fit(histogram, Cast(format="E2M1", scaling="static", static_scale=scale))
    assert 0.4 < beyond < 0.6 and found.overflow == pytest.approx(beyond, abs=0.006)


def test_an_amax_of_another_tensor_is_not_taken() -> None:
    """That of a rotated weight, say: it must lie in the highest binade that has values."""
    histogram = Histogram(-6, (10, 5, 0), 0)
    amaxes = (0.05, 0.0312, 0.0626, math.nan, None)
    assert [histogram.with_amax(amax).amax for amax in amaxes] == [0.05, None, None, None, None]


def test_the_ranking_has_every_format_and_recipe_once_in_order(histogram: Histogram) -> None:
    places = ranking(histogram, "weight", SPLITS, scaled=True)
    values = [place.fit.sqnr_db for place in places]
    assert values == sorted(values, reverse=True)
    recipes = [name for place in places for name in place.recipes]
    assert len(recipes) == len(set(recipes)) and {"mxfp8", "nvfp4", "te_delayed", "deepseek_v3"} <= set(recipes)
    alone = {place.label: place.fit for place in places if not place.recipes}
    assert alone.keys() == {fmt.name for fmt in SPLITS} and alone["E1M6"] == alone["E0M7"]
    assert cast_fit(histogram, Cast(format="FP32")).sqnr_db == math.inf and FORMATS["FP32"].bits == 32


def test_the_figure_shades_what_the_format_loses_and_draws_what_it_makes_of_each_value(histogram: Histogram) -> None:
    fmt, data = FORMATS["E2M1"], histogram.values
    figure = tensor_figure(data, fmt, scaled=True)
    scale = 2.0**-6  # the largest value is a little below 2^-4, which is 4 x 2^-6; 6 x 2^-7 lies below it
    assert tensor_scale(data, fmt, scaled=True) == scale
    lost, *more = figure.layout.shapes
    assert lost.x1 == math.log2(0.25 * scale), "0.25 is the tie between 0 and the smallest value, 0.5"
    assert [shape.x0 for shape in more] == [math.log2(6 * scale)]
    values, noise, ticks, error = figure.data
    assert sum(values.y) == pytest.approx(1 - histogram.zeros / histogram.size)
    assert sum(noise.y[::2]) == pytest.approx(1)
    assert [2.0**x / scale for x in ticks.x] == pytest.approx([0.5, 1, 1.5, 2, 3, 4, 6])
    middle = np.nanargmin(np.abs(np.array(error.x) - math.log2(2.5 * scale)))  # halfway between 2 and 3
    assert error.y[middle] == pytest.approx(0.5 / 2.5, rel=0.2)


def test_the_ranking_is_drawn_with_a_name_a_bar_and_a_figure_each(histogram: Histogram) -> None:
    places = ranking(histogram, "gradient", SPLITS, scaled=True)
    (bars,) = ranking_figure(places).data
    assert len(bars.y) == len(places) == len(set(bars.y))
    assert list(bars.text) == ["exact" if math.isinf(one.fit.sqnr_db) else f"{one.fit.sqnr_db:.1f}" for one in places]


@pytest.mark.parametrize(
    ("value", "text"),
    [(2.0**64, "2^64"), (1.5 * 2.0**32, "1.5 x 2^32"), (448.0, "448"), (57344.0, "57344"), (2.0**-9, "2^-9"),
     (127 / 128, "0.9921875"), (-(2.0**-20), "-2^-20"), (0.0, "0"), (None, "–"), (0.875 * 2.0**-6, "1.75 x 2^-7")],
)  # fmt: skip
def test_large_and_small_values_are_written_as_powers_of_two(value: float | None, text: str) -> None:
    assert binary(value) == text


@pytest.mark.parametrize(
    ("fields", "layer", "rotated"),
    [
        ({"recipe": "quartet"}, "h.0.mlp.up", True),  # both operands of the forward GEMM, as published
        ({"recipe": "nvfp4"}, "h.0.mlp.up", False),  # only those of the weight gradient
        ({"format": "E4M3"}, "h.0.mlp.up", False),
        ({"format": "E4M3", "layer_gemms": {"*up": {"fprop": {"hadamard": 16}}}}, "h.0.mlp.up", True),
        ({"format": "E4M3", "layer_gemms": {"*up": {"fprop": {"hadamard": 16}}}}, "h.0.mlp.down", False),
        ({"phases": [{"from_step": 200, "gemms": {"fprop": {"hadamard": 16}}}], "format": "E4M3"}, "h.0.mlp.up", True),
        ({"format": "of a later version"}, "h.0.mlp.up", True),
    ],
)
def test_the_amax_of_a_rotated_weight_is_that_of_another_tensor_than_the_stored_one(fields, layer, rotated):
    known = fields["format"] != "of a later version" if "format" in fields else True
    config = json.loads(TrainConfig(**fields).model_dump_json()) if known else fields
    assert rotates_weight(config, layer) is rotated
