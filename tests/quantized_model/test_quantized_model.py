"""The object that a training loop holds: nothing changes a format behind its back, and what it cannot do it says."""

from __future__ import annotations

import copy

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from altgrad.config.recipe import Recipe
from altgrad.config.train_config import TrainConfig
from altgrad.formats import FORMATS
from altgrad.quantization.kernel.counting.counters import COUNTERS
from altgrad.quantization.kernel.round import round_to_format
from altgrad.quantization.kernel.scaled_rounding import Mode, round_site
from altgrad.quantization.layers import unrounded
from altgrad.quantization.quantize import quantize_, quantize_model
from altgrad.quantization.quantized_model import QuantizedModel
from altgrad.training.trainer import Trainer
from tests.references.two_layers import IN, inputs, plain, rounded


def load(quantized: QuantizedModel) -> nn.Module:
    other = rounded("E7M0")
    quantized.model.load_state_dict(other.model.state_dict())
    return quantized.model


def moved(quantized: QuantizedModel) -> nn.Module:
    weights = copy.deepcopy(quantized.model.state_dict())
    model = quantized.model.to("meta").to_empty(device="cpu")
    model.load_state_dict(weights)
    return model


def assigned(quantized: QuantizedModel) -> nn.Module:
    weights = copy.deepcopy(quantized.model.state_dict())
    quantized.model.to("meta").load_state_dict(weights, assign=True)
    return quantized.model


def averaged(quantized: QuantizedModel) -> nn.Module:
    average = torch.optim.swa_utils.AveragedModel(quantized.model, use_buffers=True)
    for _ in range(3):
        average.update_parameters(quantized.model)
    return average.module


CHANGES = {
    "loading": load,
    "deepcopy": lambda quantized: copy.deepcopy(quantized.model),
    "to_empty": moved,
    "assign": assigned,
    "averaging": averaged,
    "half and back": lambda quantized: quantized.model.half().bfloat16().float(),
    "double and back": lambda quantized: quantized.model.double().float(),
    "shared memory": lambda quantized: quantized.model.share_memory(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_nothing_that_changes_a_models_tensors_changes_what_its_layers_round_to(change):
    model = CHANGES[change](rounded())
    weight = model[0].weight.detach()
    expected = weight.numpy().astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert np.array_equal(model[0].rounded_weight().numpy(), expected)
    assert torch.allclose(model[0](torch.eye(IN)) - model[0].bias, torch.from_numpy(expected).t(), atol=1e-6)
    assert str(model[0].format_of("weight")) == "E4M3"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_another_default_dtype_changes_no_rounding_and_no_training(dtype):
    x = torch.tensor([0.1, 1.3, -500.0], dtype=torch.float32)
    settings = {"model": "micro", "batch_size": 2, "max_steps": 2, "compile": False, "threads": 1, "eval_interval": 2}
    config = TrainConfig(**settings, format="E4M3", scaling="delayed", diagnostic_interval=1, use_shadow=True)
    expected = Trainer(config)
    losses = [expected.step().record["loss"] for _ in range(2)]
    torch.set_default_dtype(dtype)
    try:
        assert round_to_format(x, FORMATS["E4M3"]).tolist() == [0.1015625, 1.25, -448.0]
        trainer = Trainer(config)
        assert [trainer.step().record["loss"] for _ in range(2)] == losses
    finally:
        torch.set_default_dtype(torch.float32)


def test_another_default_device_changes_nothing():
    expected = rounded().layers["0"].rounded_weight()
    model = plain()
    with torch.device("meta"):
        layer = quantize_model(model, Recipe(format="E4M3", scaling="none")).layers["0"]
        assert torch.equal(layer.rounded_weight(), expected)
        layer(inputs(3, IN)).sum().backward()


def test_a_plain_state_dict_loads_strictly_and_a_quantised_one_into_the_plain_model():
    for fields in ({}, {"scaling": "delayed"}, {"master_weights": False}):
        model = plain()
        keys = list(model.state_dict())
        quantize_model(model, Recipe(format="E4M3", **fields))
        assert list(model.state_dict()) == keys
        model.load_state_dict(plain().state_dict(), strict=True)
        plain().load_state_dict(model.state_dict(), strict=True)


def test_a_state_dict_with_formats_in_it_is_refused_in_one_line_before_anything_is_loaded():
    quantized = rounded()
    before = copy.deepcopy(quantized.model.state_dict())
    old = plain().double().state_dict() | {"2.sites.weight.spec": torch.zeros(12)}
    with pytest.raises(ValueError, match=r"^state dict: '2.sites.weight.spec' was saved by[^\n]*$"):
        quantized.model.load_state_dict({name: value + 1 for name, value in old.items()})
    assert all(torch.equal(before[name], value) for name, value in quantized.model.state_dict().items())


def test_names_that_nobody_knows_are_refused_with_the_known_ones():
    x = inputs(3, 4)
    with pytest.raises(ValueError, match=r"^rounding='rne'; known: nearest, toward_zero, stochastic$"):
        round_to_format(x, FORMATS["E4M3"], "rne")
    spec = torch.zeros(12, dtype=torch.int32)
    good = Mode("nearest", "dynamic", "tensor", True, "1.0")
    for field in ("rounding", "scaling", "granularity"):
        with pytest.raises(ValueError, match=rf"^{field}='rows'; known: [^\n]*$"):
            round_site(x, spec, x.new_zeros(0), torch.zeros(3, dtype=torch.int32), good._replace(**{field: "rows"}))
    with pytest.raises(ValueError, match="nearest"):
        Recipe(rounding="rne")
    for model, recipe, said in (
        (abs, "E4M3", "a torch.nn.Module to round, found builtin"),
        (nn.Linear(2, 2), 3, "found int"),
    ):
        with pytest.raises(TypeError, match=said):
            quantize_(model, recipe)  # type: ignore[arg-type]


def test_transforms_and_double_backward_over_a_rounded_layer_say_what_is_not_supported():
    quantized = rounded()
    layer, x = quantized.layers["0"], inputs(3, IN).requires_grad_()
    for transform in (torch.func.vmap(layer), torch.func.grad(lambda t: layer(t).sum())):
        with pytest.raises(NotImplementedError, match=r"^layer 0: torch\.func transforms[^\n]*$"):
            transform(x)
    (gradient,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"^double backward over a rounded layer is not supported[^\n]*$"):
        gradient.square().sum().backward()
    layer(x).sum().backward(create_graph=True)  # nothing is differentiated twice
    (gradient,) = torch.autograd.grad(layer(x).sum(), x, create_graph=True)  # dy is constant, but dx = dy W is not
    with pytest.raises(RuntimeError, match="double backward"):
        (layer(x).square().sum() + gradient.square().sum()).backward()
    with unrounded([layer]):
        assert torch.func.vmap(layer)(x).shape == (3, 16)
        (gradient,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        gradient.square().sum().backward()


def test_rounding_comes_back_with_the_outermost_unrounded_block_in_whatever_order_they_end():
    layer, x = rounded("E2M1").layers["0"], inputs(3, IN)
    expected, bare = layer(x), nn.functional.linear(x, layer.weight, layer.bias)
    assert not torch.equal(expected, bare)
    first, second = unrounded([layer]), unrounded([layer])
    first.__enter__(), second.__enter__()
    assert torch.equal(layer(x), bare)
    first.__exit__(None, None, None)
    assert torch.equal(layer(x), bare)
    second.__exit__(None, None, None)
    assert torch.equal(layer(x), expected)


def test_a_state_of_another_model_or_recipe_is_refused_in_one_line():
    state = rounded().state_dict()
    other = quantize_model(nn.Sequential(nn.Linear(4, 4)), Recipe(format="E4M3", scaling="none"))
    with pytest.raises(ValueError, match=r"^quantised state: formats: 2 on one side only[^\n]*$"):
        other.load_state_dict(state)
    delayed = [quantize_model(plain(), Recipe(format="E4M3", scaling="delayed", amax_history=n)) for n in (3, 4)]
    with pytest.raises(ValueError, match=r"^quantised state: the history of [^\n]*amax_history=4 here$"):
        delayed[1].load_state_dict(delayed[0].state_dict())
    with pytest.raises(ValueError, match=r"^begin_step: rank=1[^\n]*$"):
        other.begin_step(0, 1, rank=1)


def test_ranks_share_numbers_without_scales_and_without_a_process_group():
    model = torch.nn.Sequential(torch.nn.Linear(16, 16))
    quantized = quantize_model(model, Recipe(format="E4M3", rounding="stochastic"))
    quantized.share(scales=False)
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    outputs = []
    for rank in (0, 1, 0):
        quantized.begin_step(0, 1, rank=rank)
        outputs.append(model(x).detach())
    assert torch.equal(outputs[0], outputs[2]) and not torch.equal(outputs[0], outputs[1])


def test_an_attached_optimizer_writes_back_until_the_model_is_plain_again():
    model = torch.nn.Sequential(torch.nn.Linear(16, 16))
    quantized = quantize_model(model, Recipe(format="E2M3", master_weights=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    quantized.attach(optimizer)
    layer = quantized.layers["0"]
    model(torch.ones(2, 16)).sum().backward()
    optimizer.step()
    assert torch.equal(layer.weight, layer.rounded_weight())
    quantized.dequantize_()
    before = model[0].weight.detach().clone()
    optimizer.step()
    assert torch.equal(model[0].weight, before - 0.1 * model[0].weight.grad)


def test_each_use_of_a_layer_draws_numbers_of_its_own_and_the_step_repeats_them():
    torch.manual_seed(0)
    model, x = nn.Linear(32, 32), torch.randn(8, 32)
    quantized = quantize_model(model, Recipe(format="E4M3", rounding="stochastic"))

    def uses():
        quantized.begin_step(1, 4)
        return [model(x) for _ in range(3)]

    first, second, third = uses()
    assert not (torch.equal(first, second) or torch.equal(second, third) or torch.equal(first, third))
    assert all(torch.equal(one, other) for one, other in zip((first, second, third), uses(), strict=True))


def test_a_pass_without_gradients_counts_nothing():
    model, x = nn.Linear(8, 8), torch.randn(4, 8)
    quantized = quantize_model(model, Recipe(format="E4M3"))
    with torch.no_grad():
        model(x)
    assert quantized.counts() == {}
    model(x)
    assert [site for _, site in quantized.counts()] == ["weight", "activation"]


def test_the_counts_of_micro_batches_are_put_together_for_all_layers_at_once():
    """By hand: 3 micro-batches of 2 x 4 ones, one of them negative zero, whose amaxes are 1, 4 and 2."""

    def quantized_of(layers):
        return quantize_model(
            nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(layers))), Recipe(format="E4M3")
        )

    operations = {}
    for layers in (1, 5):
        quantized = quantized_of(layers)
        for micro_batch, size in enumerate((1.0, 4.0, 2.0)):
            quantized.begin_step(0, 1, micro_batch=micro_batch)
            x = torch.full((2, 4), size)
            x[0, 0] = -0.0
            for layer in quantized.model:
                layer(x)
        with _Operations() as seen:
            counts = quantized.counts()
            quantized.begin_step(0, 2)
        operations[layers] = seen.count
        assert len(counts) == 2 * layers
        for (_, site), found in counts.items():
            named = dict(zip(COUNTERS, found.tolist(), strict=True))
            assert named["uses"] == 3
            if site == "activation":
                assert (named["nonzero"], named["amax"]) == (21, 4)
    assert operations[5] - operations[1] <= 8  # views, one for each site


class _Operations(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        self.count += 1
        return operation(*arguments, **(keywords or {}))
