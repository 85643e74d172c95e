"""`altgrad.quantize_`, and `set_recipe`: training goes on as that of a model that was rounded by the recipe at once."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

import altgrad
from altgrad.config.recipe import Recipe


def model() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 4))


X = torch.randn(8, 32, generator=torch.Generator().manual_seed(1))


def steps(quantized: altgrad.QuantizedModel, optimizer: torch.optim.Optimizer, numbers: range) -> list[Tensor]:
    losses = []
    for step in numbers:
        quantized.begin_step(0, step)
        loss = quantized.model(X).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


def test_a_name_is_a_published_recipe_or_a_format_and_a_recipe_is_itself() -> None:
    assert altgrad.quantize_(model(), "mxfp8").recipe == Recipe(recipe="mxfp8")
    assert altgrad.quantize_(model(), "E5M2").recipe == Recipe(format="E5M2")
    recipe = altgrad.Recipe(format="E4M3", rounding="stochastic")
    assert altgrad.quantize_(model(), recipe, counting=False).recipe is recipe


@pytest.mark.parametrize(("name", "said"), [("mxfp9", "did you mean 'mxfp8'"), ("E9M9", "E9M9"), ("", "known")])
def test_an_unknown_name_is_one_line_and_leaves_the_model_plain(name: str, said: str) -> None:
    plain = model()
    with pytest.raises(ValueError, match=said) as refused:
        altgrad.quantize_(plain, name)
    assert len(str(refused.value).splitlines()) == 1 and type(plain[0]) is nn.Linear


@pytest.mark.parametrize("second", [Recipe(recipe="mxfp8"), Recipe(format="E4M3", scaling="delayed"), "stored"])
def test_after_set_recipe_training_is_that_of_a_model_rounded_by_it(second: Recipe | str) -> None:
    """Weights and moments of four steps under E5M2; then the same object, and a fresh one, under the second recipe."""
    if isinstance(second, str):
        second = Recipe(format="E4M3", master_weights=False, update_rounding="stochastic", scaling="delayed")
    quantized = altgrad.quantize_(model(), Recipe(format="E5M2", scaling="delayed", rounding="stochastic"))
    optimizer = torch.optim.AdamW(quantized.model.parameters(), lr=1e-2)
    quantized.attach(optimizer)
    steps(quantized, optimizer, range(1, 5))

    other = model()
    other.load_state_dict(quantized.model.state_dict())
    fresh = altgrad.quantize_(other, second)
    own = torch.optim.AdamW(other.parameters(), lr=1e-2)
    own.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    fresh.attach(own)

    quantized.set_recipe(second)
    assert quantized.recipe == second
    assert torch.equal(
        torch.stack(steps(quantized, optimizer, range(5, 9))), torch.stack(steps(fresh, own, range(5, 9)))
    )
    for ours, theirs in zip(quantized.model.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    for name, history in quantized.histories().items():  # `attach` still remembers the amaxes of each step
        assert torch.equal(history, fresh.histories()[name]) and history.any()


def test_set_recipe_takes_a_name_as_quantize_does_and_nothing_else() -> None:
    quantized = altgrad.quantize_(model(), "E4M3")
    quantized.set_recipe("mxfp8")
    assert quantized.recipe == Recipe(recipe="mxfp8")
    with pytest.raises(ValueError, match=r"no recipe or format 'mxpf8'; did you mean 'mxfp8'\?"):
        quantized.set_recipe("mxpf8")
    with pytest.raises(TypeError, match="set_recipe: expected a Recipe, or the name of a recipe or format, found int"):
        quantized.set_recipe(8)  # type: ignore[arg-type]
    assert quantized.recipe == Recipe(recipe="mxfp8")


@pytest.mark.parametrize("stored", [False, True])
def test_a_recipe_that_is_refused_leaves_training_as_it_was(stored: bool) -> None:
    """The histories, the attached optimizer and the weights go on as without the attempt."""
    first = Recipe(format="E5M2", scaling="delayed", rounding="stochastic", master_weights=not stored)
    losses = []
    for refused in (False, True):
        quantized = altgrad.quantize_(model(), first)
        optimizer = torch.optim.AdamW(quantized.model.parameters(), lr=1e-2)
        quantized.attach(optimizer)
        steps(quantized, optimizer, range(1, 5))
        before = {name: history.clone() for name, history in quantized.histories().items()}
        if refused:
            with pytest.raises(ValueError, match="matches no layer"):
                quantized.set_recipe(Recipe(format="E4M3", layer_formats={"nothing.*": "BF16"}))
            assert quantized.recipe == first
        assert all(torch.equal(history, before[name]) for name, history in quantized.histories().items())
        losses.append(steps(quantized, optimizer, range(5, 9)))
        assert all(history.any() for history in quantized.histories().values())
    assert losses[0] == losses[1]


def test_importing_altgrad_loads_no_torch_and_its_names_are_listed() -> None:
    program = "import sys, altgrad; assert 'torch' not in sys.modules; print('quantize_' in dir(altgrad))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "True\n"
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        _ = altgrad.quantise
