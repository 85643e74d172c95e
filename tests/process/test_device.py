"""What a step asks of a device, read off the operators it dispatches: transfers, waiting, what outlives the step."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from altgrad.config.train_config import TrainConfig
from altgrad.quantization.kernel.ranks import ALONE
from altgrad.quantization.layers import QuantizedLinear
from altgrad.training import trainer as trainer_module
from altgrad.training.task.divided_batch import DividedBatch
from altgrad.training.task.loss_value import read_loss
from altgrad.training.trainer import Trainer
from bench.harness import Measured
from bench.rows import ROWS
from tests.support.runs.small_runs import BARE

EAGER = BARE | {"compile": False, "threads": 1}
VARIANTS = [
    {"format": "E4M3"},
    {"format": "E4M3", "gemm_dtype": "bfloat16", "scaling": "delayed"},
    {"format": "E3M4", "master_weights": False, "update_rounding": "stochastic"},
    {"format": "E4M3", "gradient_format": "E5M2", "native_fp8": True},
    {"format": "E4M3", "gradient_format": "E5M2", "native_fp8": True, "scale_granularity": "row"},
]


class _Crossings(TorchDispatchMode):
    """Operators that move values between the host and the device: (operator, non_blocking)."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, bool]] = []

    def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
        keywords = keywords or {}
        result = operator(*arguments, **keywords)
        devices = {t.device.type for t in tree_leaves((arguments, result)) if isinstance(t, Tensor) and t.numel()}
        if "copy" in str(operator) and len(devices) == 2:
            self.found.append((str(operator), bool(keywords.get("non_blocking") or True in arguments[2:])))
        return result


@pytest.fixture
def no_tensor_from_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.tensor([0.75, 0.25], device="cuda")` waits for its copy, which no operator of the meta device shows."""
    made = torch.tensor

    def checked(data, **keywords):
        assert torch.device(keywords.get("device") or "cpu").type == "cpu", f"torch.tensor({data!r:.60}) on a device"
        return made(data, **keywords)

    monkeypatch.setattr(torch, "tensor", checked)


def _without_autocast(layer: QuantizedLinear, x: Tensor) -> Tensor:
    """The layer's product, without asking whether autocast, which knows no meta device, is on."""
    return layer.compute(x.float(), layer.weight.float(), layer.bias)


@pytest.mark.parametrize("fields", VARIANTS, ids=lambda fields: "-".join(map(str, fields.values())))
def test_a_step_sends_the_batch_without_waiting_and_reads_its_numbers_once(fields, monkeypatch, request):
    """On the meta device, which holds no values: whatever else would look at one on the host raises."""
    monkeypatch.setattr(trainer_module, "device_named", lambda name: torch.device("meta"))
    monkeypatch.setattr(QuantizedLinear, "forward", _without_autocast)
    trainer = Trainer(TrainConfig(**EAGER, **fields))
    monkeypatch.setattr(trainer.optimizer, "step", lambda: None)  # fused AdamW, which has no meta kernel
    read = []
    monkeypatch.setattr(Tensor, "tolist", lambda tensor: read.append(tensor.device.type) or [1.0] * tensor.numel())
    trainer.step()
    del read[:]
    request.getfixturevalue("no_tensor_from_numbers")
    with _Crossings() as crossings:
        trainer.step()
    assert read == ["meta"]
    assert crossings.found == 2 * [("aten._to_copy.default", True)]  # inputs and targets


@pytest.mark.usefixtures("no_tensor_from_numbers")
def test_shares_and_metrics_that_are_numbers_are_not_copied_to_the_device():
    """Two parts that count 3 to 1, with losses on the meta device, and a metric that a task gives as a number."""
    divided = object.__new__(DividedBatch)
    divided.shares = [0.75, 0.25]
    losses = [torch.ones((), device="meta", requires_grad=True) * 2 for _ in range(2)]
    assert divided.mean(losses, ALONE).device.type == "meta"
    _, metrics = read_loss((losses[0], {"accuracy": 0.5}))
    assert metrics["accuracy"].device.type == "meta"


def test_nothing_that_a_graph_gave_outlives_its_step(monkeypatch):
    """CUDA graphs write the loss, the counts and the gradients of the next step where those of this one lie."""
    trainer = Trainer(TrainConfig(**(EAGER | {"diagnostic_interval": 1}), use_shadow=True, log_ulp=True))
    loss_of, calls = trainer._passes.step_loss, []

    def checked(inputs: Tensor, targets: Tensor) -> Tensor:
        assert all(parameter.grad is None for parameter in trainer.model.parameters())
        for layer in trainer.layers.values():
            for site in layer.sites.values():
                assert site.counts is None and site.slots.first.grad is None and site.slots.further.grad is None
        assert not [loss for loss in calls if loss() is not None]
        loss = loss_of(inputs, targets)
        calls.append(weakref.ref(loss))
        return loss

    monkeypatch.setattr(trainer._passes, "step_loss", checked)
    for _ in range(3):
        trainer.step()
    assert len(calls) == 3


def test_cuda_graphs_are_refused_without_cuda():
    with pytest.raises(ValueError, match=r"^cuda_graphs=true: the device is cpu; [^\n]*$"):
        Trainer(TrainConfig(**(EAGER | {"compile": "auto"}), device="cpu", cuda_graphs=True))


@pytest.mark.parametrize("how", [False, "blocks"])
def test_cuda_graphs_want_a_step_compiled_as_one_graph(how):
    with pytest.raises(ValueError, match=f"cuda_graphs=True with compile={how!r}"):
        TrainConfig(cuda_graphs=True, compile=how)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
@pytest.mark.parametrize("name", ["round", "step", "native"])
def test_a_gpu_row_of_the_benchmark_says_that_it_was_not_measured(name):
    row = Measured.of(ROWS[f"cuda_{name}"])
    assert row.ratio is None and row.verdict == "not measured: no CUDA device"
