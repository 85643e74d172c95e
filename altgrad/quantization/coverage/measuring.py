"""Measures the coverage of a model: one batch is run forward and backward, and the model is left as it was."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from altgrad import torch_private
from altgrad.config.fields.config_errors import ConfigError
from altgrad.quantization.coverage.product_counter import ProductCounter
from altgrad.quantization.coverage.share import Coverage
from altgrad.quantization.layers import unrounded


def measure_coverage(
    model: nn.Module, loss: Callable[[], Tensor], left_out: Mapping[str, str] | None = None
) -> Coverage | None:
    """Measure which share of the products behind `loss()` is rounded; None on the `meta` device.

    loss: computes the loss (0-d) of `model` on one batch.  left_out: why modules were left plain, by name (see
    `QuantizedModel`).  The model is left unchanged: weights, buffers, gradients, counts, training flags and random
    states.  Exceptions of the model are caught, but for ConfigError: if its backward pass fails, only the forward pass
    is counted, and `note` gives the reason.
    """
    if any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()]):
        return None
    counter = ProductCounter(model, left_out or {})
    note = ""
    with _undisturbed(model) as undo, ExitStack() as stack:
        counter.before_write = undo
        contexts = (
            unrounded(counter.layers),
            counter.layers_watched(),
            torch.enable_grad(),
            counter.modules_noted(),
            counter,
        )
        for context in contexts:
            stack.enter_context(context)
        try:
            part = "forward"
            value = loss()
            part = "backward"
            parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
            torch.autograd.grad(value, parameters, allow_unused=True)
        except ConfigError:  # what the model returned is no loss: a run of it ends with the same line
            raise
        except Exception as error:  # from the model's own code; if training raises it too, it is reported there
            message = " ".join(str(error).split())[:200]
            note = f"the {part} pass could not be run on one batch alone: {type(error).__name__}: {message}"
    return counter.coverage(note)


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[Callable[[Tensor], None]]:
    """Context in which the model may compute; on exit its tensors and all random states are restored.

    Yields a function that must be called with a tensor before it is written.  Buffers are copied on entry, because a
    batch norm writes its statistics inside a fused kernel; a parameter, which few models write, is copied before its
    first write.
    """
    buffers = [
        (module, name, buffer, None if buffer is None else buffer.clone())
        for module in model.modules()
        for name, buffer in torch_private.buffers_of(module).items()
    ]
    owners = {torch_private.storage_key(parameter): parameter for parameter in model.parameters()}
    kept: dict[int, tuple[nn.Parameter, Tensor]] = {}

    def before_write(tensor: Tensor) -> None:
        key = torch_private.storage_key(tensor)
        if key in owners and key not in kept:
            kept[key] = owners[key], owners[key].detach().clone()

    devices = {tensor.device for tensor in [*model.parameters(), *model.buffers()] if tensor.device.type == "cuda"}
    python, numpy = random.getstate(), np.random.get_state()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=list(devices)))
        # without oneDNN and cuDNN a recurrent layer runs as single products, which can be counted
        stack.enter_context(torch_private.without_onednn())
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            yield before_write
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            with torch.no_grad():
                for parameter, value in kept.values():
                    parameter.copy_(value)
                for module, name, buffer, content in buffers:
                    torch_private.buffers_of(module)[name] = buffer
                    if buffer is not None and content is not None:
                        buffer.copy_(content)
