"""A forward pass that activation checkpointing recomputes rounds as the first time, whatever was begun in between.

The oracle is torch without checkpoints, one micro-batch after the other: the gradients must be the same bits.
"""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from altgrad.config.published import published_names
from altgrad.config.recipe import Recipe
from altgrad.quantization.gemms.past_keys import KEPT
from altgrad.quantization.quantize import quantize_model
from altgrad.quantization.quantized_model import QuantizedModel

Schedule = list[tuple[str, int]]
Wrap = Callable[..., Tensor]


def alternating(warm_up: int, micro_batches: int) -> Schedule:
    """A pipeline's schedule: some forward passes, then one forward and one backward in turn (1F1B)."""
    forward, backward = (iter([(kind, n) for n in range(micro_batches)]) for kind in "FB")
    found = [next(forward) for _ in range(warm_up)]
    for one in backward:
        found += [one, *([following] if (following := next(forward, None)) else [])]
    return found


SCHEDULES = {
    **{f"{k} of {n}": alternating(k, n) for k, n in ((2, 2), (3, 3), (2, 4), (3, 4))},
    "last first": [("F", 0), ("F", 1), ("F", 2), ("B", 2), ("B", 0), ("B", 1)],
    "a held-out batch between": [("F", 0), ("V", 0), ("F", 1), ("V", 1), ("B", 0), ("V", 2), ("B", 1)],
}


def plain(block: nn.Module, x: Tensor, *_: bool) -> Tensor:
    return block(x)


def once(reentrant: bool) -> Wrap:
    return lambda block, x: checkpoint(block, x, use_reentrant=reentrant)


def nested(outer: bool, inner: bool) -> Wrap:
    """Each block checkpointed within a checkpoint that begins and ends with an operation of no rounded layer."""

    def region(block: nn.Module, x: Tensor) -> Tensor:
        y = checkpoint(lambda x: block(x * 1.5).sin(), x.cos(), use_reentrant=inner)
        return y.exp()

    return lambda block, x: checkpoint(region, block, x, use_reentrant=outer)


def unwrapped(block: nn.Module, x: Tensor) -> Tensor:
    return block(x.cos() * 1.5).sin().exp()


class Blocks(nn.Module):
    def __init__(self, wrap: Wrap) -> None:
        super().__init__()
        self.first, self.lm_head, self.wrap = nn.Linear(32, 32), nn.Linear(32, 32), wrap
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32, bias=False), nn.Tanh()) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = self.wrap(block, x)
        return self.lm_head(x)


def made(wrap: Wrap, recipe: Recipe) -> tuple[nn.Module, QuantizedModel]:
    torch.manual_seed(0)
    model = Blocks(wrap)
    return model, quantize_model(model, recipe, total_steps=1000)


def gradients(wrap: Wrap, recipe: Recipe, schedule: Iterable[tuple[str, int]]) -> Tensor:
    """Gradients of two steps after each other, each made by the schedule."""
    model, quantized = made(wrap, recipe)
    found, step = [], 0
    for step in (1, 2):
        outputs: dict[int, Tensor] = {}
        model.zero_grad()
        for what, number in schedule:
            x = torch.randn(32, 32, generator=torch.Generator().manual_seed(10 * step + number))
            if what == "F":
                quantized.begin_step(7, step, micro_batch=number)
                outputs[number] = model(x)
            elif what == "V":
                quantized.begin_validation(7, step, number)
                with torch.no_grad():
                    model(x)
            else:
                outputs.pop(number).square().sum().backward()
        found += [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    assert len(found) == 2 * len(list(model.parameters()))
    return torch.cat([one.flatten() for one in found])


def one_by_one(schedule: Schedule) -> Schedule:
    """The same backward passes, each right after its forward pass."""
    order = [number for what, number in schedule if what == "B"]
    return [(what, number) for number in order for what in "FB"]


STOCHASTIC = Recipe(format="E4M3", rounding="stochastic")


def draws(recipe: Recipe) -> bool:
    return any(cast.rounding == "stochastic" or cast.redraws for cast in recipe.casts_at().values())


DRAWING = [name for name in published_names() if draws(Recipe(recipe=name))]


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("reentrant", [None, False, True])
def test_interleaved_micro_batches_have_the_gradients_of_those_that_are_not(
    schedule: Schedule, reentrant: bool | None
) -> None:
    wanted = gradients(plain, STOCHASTIC, one_by_one(schedule))
    found = gradients(plain if reentrant is None else once(reentrant), STOCHASTIC, schedule)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("outer", [False, True])
@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("schedule", ["3 of 4", "last first", "a held-out batch between"])
def test_a_checkpoint_within_a_checkpoint_repeats_the_numbers_of_its_forward_pass(
    outer: bool, inner: bool, schedule: str
) -> None:
    wanted = gradients(unwrapped, STOCHASTIC, one_by_one(SCHEDULES[schedule]))
    assert torch.equal(gradients(nested(outer, inner), STOCHASTIC, SCHEDULES[schedule]), wanted)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", DRAWING)
def test_every_recipe_that_draws_numbers_draws_them_again(name: str, reentrant: bool) -> None:
    schedule = alternating(2, 3)
    wanted = gradients(plain, Recipe(recipe=name), one_by_one(schedule))
    assert torch.equal(gradients(once(reentrant), Recipe(recipe=name), schedule), wanted)


def test_a_backward_pass_that_fails_leaves_nothing_behind() -> None:
    """A checkpoint whose backward pass raised is over; the next pass is none within it."""

    def found(fails: bool) -> Tensor:
        model, quantized = made(once(True), STOCHASTIC)
        outputs = []
        for number in range(2):
            quantized.begin_step(7, 1, micro_batch=number)
            outputs.append(model(torch.ones(32, 32) + number))
        if fails:
            handle = model.first.weight.register_hook(lambda gradient: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                outputs[1].sum().backward(retain_graph=True)
            handle.remove()
            model.zero_grad()
        outputs[0].sum().backward()
        return torch.cat([one.grad.flatten() for one in model.parameters() if one.grad is not None])

    assert torch.equal(found(True), found(False))


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_layer_of_several_uses_is_refused_also_after_the_next_micro_batch_has_begun(reentrant: bool) -> None:
    twice = nn.Linear(8, 8)
    quantized = quantize_model(twice, STOCHASTIC)
    x, outputs = torch.ones(4, 8, requires_grad=True), []
    for number, uses in enumerate((2, 1)):
        quantized.begin_step(0, 1, micro_batch=number)
        y = x
        for _ in range(uses):
            y = checkpoint(twice, y, use_reentrant=reentrant)
        outputs.append(y)
    outputs[1].sum().backward()
    with pytest.raises(ValueError, match="several times with one key") as caught:
        outputs[0].sum().backward()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_forward_pass_whose_key_is_no_longer_known_is_refused(reentrant: bool) -> None:
    layer = nn.Linear(8, 8)
    quantized = quantize_model(layer, STOCHASTIC)
    x = torch.ones(4, 8, requires_grad=True)
    quantized.begin_step(0, 1)
    old = checkpoint(layer, x, use_reentrant=reentrant)
    for step in range(2, KEPT + 4):
        quantized.begin_step(0, step)
        x.sum()  # a node of each
    with pytest.raises(ValueError, match="no longer known"):
        old.sum().backward()


def test_forward_passes_of_another_thread_are_refused() -> None:
    layer, outputs = nn.Linear(8, 8), []
    quantized = quantize_model(layer, STOCHASTIC)
    x = torch.ones(4, 8, requires_grad=True)
    for number in range(2):
        quantized.begin_step(0, 1, micro_batch=number)
        thread = threading.Thread(target=lambda: outputs.append(checkpoint(layer, x, use_reentrant=False)))
        thread.start()
        thread.join()
    with pytest.raises(ValueError, match="by several threads"):
        outputs[0].sum().backward()


def test_a_copy_goes_on_alone() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    quantized = quantize_model(model, STOCHASTIC)
    x = torch.ones(4, 8, requires_grad=True)
    quantized.begin_step(0, 1)
    wanted = model(x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), checkpoint(twin, x, use_reentrant=False)) is False  # the second use
        quantized.begin_step(0, 1)
        assert torch.equal(model(x), wanted)
        twin(x).sum().backward()


@pytest.mark.compiled
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
def test_compiled_code_within_a_checkpoint_repeats_or_is_refused(inside: bool, reentrant: bool) -> None:
    """Compiled code that an eager checkpoint runs again counts the run as a further use, with other numbers."""

    def found(compiled: bool, schedule: Schedule) -> Tensor:
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8))
        quantized = quantize_model(model, STOCHASTIC)
        block = torch.compile(model, backend="aot_eager") if compiled and inside else model

        def region(x: Tensor) -> Tensor:
            return checkpoint(block, x, use_reentrant=reentrant) if compiled else block(x)

        whole = torch.compile(region, backend="aot_eager") if compiled and not inside else region
        outputs: dict[int, Tensor] = {}
        for what, number in schedule:
            if what == "F":
                quantized.begin_step(7, 3, micro_batch=number)
                x = torch.randn(4, 32, generator=torch.Generator().manual_seed(number)).requires_grad_()
                outputs[number] = whole(x)
            else:
                outputs.pop(number).square().sum().backward()
        return torch.cat([one.grad.flatten() for one in model.parameters() if one.grad is not None])

    schedule = alternating(2, 3)
    wanted = found(False, schedule)
    if inside:
        with pytest.raises(ValueError, match="compile the function that calls checkpoint"):
            found(True, schedule)
    else:
        torch.testing.assert_close(found(True, schedule), wanted, rtol=0, atol=0)
