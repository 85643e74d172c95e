"""Delayed scaling on a GPU: once all histories hold an amax, its graphs take none before rounding and give the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from altgrad.config.recipe import Recipe
from altgrad.config.train_config import TrainConfig
from altgrad.quantization import quantized_model
from altgrad.quantization.quantize import quantize_model
from altgrad.quantization.quantized_model import QuantizedModel
from altgrad.quantization.stored import amax_histories

DELAYED = Recipe(recipe="te_delayed", amax_history=2)
STEPS = 5


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amax_histories, "rounds_in_its_producer", lambda device: True)


def quantized(recipe: Recipe = DELAYED) -> QuantizedModel:
    torch.manual_seed(1)
    return quantize_model(nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 4)), recipe)


def step(ours: QuantizedModel, number: int, call: nn.Module | None = None, factor: float = 1.0) -> list[Tensor]:
    """The gradients of a step on inputs that double from step to step, so that remembered amaxes are too small."""
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(number)) * 2.0**number
    parameters = list(ours.model.parameters())
    ours.model.zero_grad()
    ours.begin_step(1, number)
    ((call or ours.model)(x).square().mean() * factor).backward()
    with torch.no_grad():
        for parameter in parameters:
            parameter -= 0.1 * parameter.grad / 4.0**number
    ours.after_optimizer()
    return [parameter.grad.clone() for parameter in parameters]


def filled(ours: QuantizedModel) -> set[bool]:
    return {site.mode.filled for layer in ours.layers.values() for site in layer.sites.values() if site.delayed}


def on_a_cpu() -> list[list[Tensor]]:
    ours = quantized()
    found = [step(ours, number) for number in range(STEPS)]
    assert filled(ours) == {False}
    return found


@pytest.mark.compiled
def test_after_its_first_step_a_gpu_has_a_second_graph_and_no_third_with_the_same_numbers(monkeypatch):
    expected = on_a_cpu()
    monkeypatch.setattr(amax_histories, "rounds_in_its_producer", lambda device: True)
    ours, graphs = quantized(), CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(ours.model, backend=graphs, dynamic=False)
    seen = []
    for number in range(STEPS):
        seen.append((filled(ours), graphs.frame_count))
        torch.testing.assert_close(step(ours, number, compiled), expected[number], rtol=0, atol=0)
    assert seen == [({False}, 0), ({True}, 1), *[({True}, 2)] * (STEPS - 2)]


def test_a_restored_run_has_the_graphs_that_it_had(on_a_gpu):
    ours = quantized()
    first = ours.state_dict(), {name: value.clone() for name, value in ours.model.state_dict().items()}
    found = [step(ours, number) for number in range(3)]
    ours.load_state_dict(first[0])
    assert filled(ours) == {False}
    ours.model.load_state_dict(first[1])
    again = [step(ours, number) for number in range(3)]
    torch.testing.assert_close(again, found, rtol=0, atol=0)
    fresh = quantized()
    fresh.load_state_dict(ours.state_dict())
    assert filled(fresh) == {True}


def test_steps_whose_tensor_is_zero_leave_the_last_amax_in_a_history_so_that_none_is_empty_again(on_a_gpu):
    """As in Transformer Engine, which keeps the scale of a tensor whose remembered amaxes are all 0."""
    ours = quantized()
    step(ours, 0, factor=0.0)
    assert filled(ours) == {False}  # no gradient had an amax yet
    step(ours, 1)
    last = {name: history.amax() for name, history in ours.histories().items() if name.endswith("gradient")}
    for number in range(2, 6):
        step(ours, number, factor=0.0)
    assert len(last) == 2 and {name: ours.histories()[name].amax() for name in last} == last
    assert filled(ours) == {True}


def test_a_phase_whose_histories_are_empty_begins_with_the_general_graph(on_a_gpu):
    delayed = {"scaling": "delayed", "amax_history": 2}
    ours = quantized(TrainConfig(format="E4M3", max_steps=9, phases=[{"from_step": 2} | delayed]))
    seen = []
    for number in range(1, 5):
        ours.begin_step(1, number)
        seen.append(filled(ours))
        step(ours, number)
    assert seen == [set(), {False}, {True}, {True}]


def test_a_history_that_stays_empty_lets_the_device_be_waited_for_at_few_steps(on_a_gpu, monkeypatch):
    ours, asked = quantized(), []
    monkeypatch.setattr(quantized_model, "note_filled", lambda sites: bool(asked.append(True)))
    for number in range(100):
        ours.begin_step(1, number)
        ours.after_optimizer()
    assert len(asked) == 8  # steps 0, 1, 2, 4, 8, 16, 32, 64
