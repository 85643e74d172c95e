"""How much of a model's products is computed in which formats, against numbers worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from altgrad.config.recipe import Recipe
from altgrad.config.train_config import TrainConfig
from altgrad.experiment.runner import run_format_experiment
from altgrad.quantization.coverage import Coverage, measure_coverage
from altgrad.quantization.quantize import quantize_model
from altgrad.results import read_run
from altgrad.storage.folder import Folder
from altgrad.training.model import build_gpt

# two layers of 8 x 16 and 16 x 4 on 3 rows: 2 FLOPs a multiply-add; the first layer's input needs no gradient
FIRST, SECOND = 2 * 3 * 8 * 16, 2 * 3 * 16 * 4


def two_layers(recipe: Recipe, again: bool = False) -> Coverage:
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4))
    quantize_model(model, recipe)
    x = torch.randn(3, 8)
    found = measure_coverage(
        model, lambda: (checkpoint(model, x, use_reentrant=False) if again else model(x)).square().mean()
    )
    assert found is not None and sum(found.formats.values()) == found.rounded_flops == found.total_flops
    return found


def test_gradients_of_another_format_stand_by_themselves() -> None:
    found = two_layers(Recipe(recipe="te_current"))
    backward = {"E5M2 x E4M3": FIRST + 2 * SECOND}
    assert found.formats == {"E4M3": FIRST + SECOND} | backward
    assert list(found.formats.values()) == sorted(found.formats.values(), reverse=True)
    total = 2 * FIRST + 3 * SECOND
    shares = f"E5M2 x E4M3 {backward['E5M2 x E4M3'] / total:.1%}, E4M3 {(FIRST + SECOND) / total:.1%}"
    assert found.sentence() == f"100.0% of the GEMM FLOPs are rounded ({shares})"
    assert found.record()["formats"] == found.formats


def test_a_gemm_left_in_high_precision_is_told_from_the_rounded_ones() -> None:
    assert two_layers(Recipe(recipe="switchback")).formats == {"E0M7": FIRST + 2 * SECOND, "BF16": FIRST + SECOND}
    mixed = Recipe(format="E4M3", gemms={"wgrad": {"gradient": {"format": "BF16"}}})
    assert two_layers(mixed).formats == {"E4M3": FIRST + 2 * SECOND, "BF16 x E4M3": FIRST + SECOND}


def test_one_format_needs_no_list() -> None:
    found = two_layers(Recipe(format="E4M3"))
    assert found.formats == {"E4M3": found.total_flops} and found.sentence() == "100.0% of the GEMM FLOPs are rounded"


def test_fp32_which_changes_no_value_is_named() -> None:
    assert two_layers(Recipe(format="FP32")).sentence() == "100.0% of the GEMM FLOPs are rounded (FP32 100.0%)"


def test_a_forward_pass_computed_again_is_a_forward_pass() -> None:
    """The second one ends where all that backward needs is there: before the last layer's product."""
    found = two_layers(Recipe(recipe="te_current"), again=True)
    assert found.formats == {"E4M3": 2 * FIRST + SECOND, "E5M2 x E4M3": FIRST + 2 * SECOND}


def test_frozen_weights_need_the_gradient_of_their_input_only() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4))
    model[1].weight.requires_grad_(False)
    quantize_model(model, Recipe(recipe="switchback"))
    found = measure_coverage(model, lambda: model(torch.ones(3, 8)).square().mean())
    assert found is not None and found.formats == {"E0M7": FIRST + 2 * SECOND, "BF16": FIRST}


@pytest.mark.parametrize(("recipe", "high_blocks"), [("deepseek_v3", 0), ("nvfp4", 1)])
def test_the_head_and_blocks_that_a_recipe_keeps_are_counted_by_formula(recipe: str, high_blocks: int) -> None:
    config = TrainConfig(model="micro", recipe=recipe)
    shape, rows, classes = config.shape, 3, 256
    model = build_gpt(config, classes)
    quantize_model(model, config)
    tokens = torch.randint(0, classes, (rows, shape.block_size))
    found = measure_coverage(model, lambda: model(tokens, tokens))
    assert found is not None
    block = 6 * rows * shape.block_size * 12 * shape.n_embd**2
    head = 6 * rows * shape.block_size * classes * shape.n_embd
    assert found.formats == {config.format: (shape.n_layer - high_blocks) * block, "BF16": high_blocks * block + head}


def test_a_run_records_the_shares_and_a_damaged_record_has_none(tmp_path: Path) -> None:
    fields = {"model": "micro", "recipe": "switchback", "max_steps": 1, "warmup_steps": 0, "eval_batches": 1}
    run_format_experiment(TrainConfig(**fields, compile=False), tmp_path)
    shares = read_run(Folder.at(tmp_path)).rounded_formats
    assert shares["E0M7"] == pytest.approx(2 * shares["BF16"], rel=0.05)  # two of three products of each layer
    path = tmp_path / "run.json"
    info = json.loads(path.read_text())
    for found in ("E4M3", None, {"E4M3": "many"}, [1], {}):
        info["coverage"]["formats"] = found
        path.write_text(json.dumps(info))
        assert read_run(Folder.at(tmp_path)).rounded_formats == {}
