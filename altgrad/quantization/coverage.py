"""Measures the share of a model's matrix products that is rounded, and lists the products that are not.

Layers of the kinds in `adapters.registry` are rounded.  A model that also multiplies elsewhere (by hand, in a layer
of its own kind, in the products inside attention) is rounded in part, and a format that trains it well may have been
used for a small part of the work only.

One batch is run forward and backward without rounding, and the FLOPs of every product are counted (2 per
multiply-add).  A product of the backward pass is attributed to the module whose forward pass made its autograd node.
"""

from __future__ import annotations

import bisect
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from html import escape
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.flop_counter import flop_registry

from altgrad import torch_private
from altgrad.quantization.adapters.rounded_module import RoundedModule
from altgrad.quantization.gemms.rounded_gemm import RoundedGemm
from altgrad.quantization.layers import gemms_of, unrounded
from altgrad.torch_private import TorchDispatchMode

MOST_LISTED = 20
CHOSEN = ("filter_fn", "product of two activations")  # reasons that are a choice: of the user, or of the recipe
LITTLE = 0.5  # below this share a run is weak evidence about its format
_BATCHED = ("bmm", "baddbmm")
_ATTENTION = ("_scaled_dot_product", "_flash_attention", "_efficient_attention")


@dataclass(frozen=True)
class LeftOut:
    """Products that are not rounded: their module, its class (`type`), their FLOPs per step, and the reason."""

    module: str
    type: str
    flops: int
    reason: str


@dataclass(frozen=True)
class Coverage:
    """FLOPs of one step's matrix products, forward and backward, in total and in rounded layers.

    `modules`: the products that are not rounded, largest first.  `note`: which part could not be measured, else "".
    """

    total_flops: int
    rounded_flops: int
    modules: tuple[LeftOut, ...]
    note: str = ""

    @property
    def share(self) -> float | None:
        """Rounded share of the FLOPs; None if no product was seen."""
        return self.rounded_flops / self.total_flops if self.total_flops else None

    @property
    def uncovered(self) -> tuple[LeftOut, ...]:
        """The listed products that are left out without having been chosen: nothing here can round them."""
        return tuple(one for one in self.modules if one.reason not in CHOSEN)

    def record(self) -> dict[str, Any]:
        """The form in which `run.json` stores it."""
        return {"share": self.share, **asdict(self), "modules": [asdict(one) for one in self.modules]}

    def _repr_html_(self) -> str:
        """For a notebook: the sentence, and the products that are left out as a table."""
        rows = "".join(
            f"<tr><td>{escape(one.module)}</td><td>{escape(one.type)}</td><td>{one.flops / self.total_flops:.1%}</td>"
            f"<td>{escape(one.reason)}</td></tr>"
            for one in self.modules
        )
        head = "<tr><th>left out</th><th>class</th><th>GEMM FLOPs</th><th>reason</th></tr>"
        said = self.sentence().partition(";")[0] if self.share is not None else self.sentence()
        return f"<p>{escape(said)}</p>" + (f"<table>{head}{rows}</table>" if rows else "")

    def sentence(self, warned: bool = True) -> str:
        """`91.4 % of the GEMM FLOPs are rounded; left out: h.0.attn (product of two activations) 2.1 %, ...`."""
        if self.share is None:
            return f"which share of the GEMM FLOPs is rounded is not known: {self.note or 'no product was seen'}"
        largest = ", ".join(
            f"{one.module} ({one.reason}) {one.flops / self.total_flops:.1%}" for one in self.modules[:3]
        )
        rest = ", ..." if len(self.modules) > 3 else ""
        left_out = f"; left out: {largest}{rest}" if largest else ""
        warning = "Warning: only " if warned and self.share < LITTLE else ""
        note = f" ({self.note})" if self.note else ""
        return f"{warning}{self.share:.1%} of the GEMM FLOPs are rounded{left_out}{note}"


def measure_coverage(
    model: nn.Module, loss: Callable[[], Tensor], left_out: Mapping[str, str] | None = None
) -> Coverage | None:
    """Measure which share of the products behind `loss()` is rounded; None on the `meta` device.

    loss: computes the loss (0-d) of `model` on one batch.  left_out: why modules were left plain, by name (see
    `QuantizedModel`).  The model is left unchanged: weights, buffers, gradients,
    counts, training flags and random states.  Exceptions of the model are caught: if its backward pass fails, only the
    forward pass is counted, and `note` gives the reason.
    """
    if any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()]):
        return None
    counter = _Counter(model, left_out or {})
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
        except Exception as error:  # from the model's own code; if training raises it too, it is reported there
            message = " ".join(str(error).split())[:200]
            note = f"the {part} pass could not be run on one batch alone: {type(error).__name__}: {message}"
    return counter.coverage(note)


class _Place(NamedTuple):
    """Where a product is computed: in a module, and there in a rounded product or outside of one."""

    module: nn.Module
    rounded: bool = False


class _Counter(TorchDispatchMode):
    """Adds up the FLOPs of every product by place and reason."""

    def __init__(self, model: nn.Module, left_out: Mapping[str, str]) -> None:
        super().__init__()
        self._left_out = left_out
        self._names: dict[nn.Module, str] = {}
        for name, module in model.named_modules():
            self._names.setdefault(module, name)
        self.layers = gemms_of(model)
        self._inside: list[_Place] = [_Place(model)]
        self._sequence: list[int] = [0]  # autograd nodes from this sequence number on ...
        self._owner: list[_Place] = [_Place(model)]  # ... were made at this place
        self._flops: dict[tuple[_Place, str], int] = {}
        self.before_write: Callable[[Tensor], None] = lambda tensor: None

    @contextmanager
    def modules_noted(self) -> Iterator[None]:
        """Context in which hooks record the module whose forward pass is running."""
        handles = [
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._leave, always_call=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def layers_watched(self) -> Iterator[None]:
        """Context in which the rounded layers tell when they multiply."""
        for layer in self.layers:
            layer.watch = self._multiplies
        try:
            yield
        finally:
            for layer in self.layers:
                layer.watch = None

    @contextmanager
    def _multiplies(self, layer: RoundedGemm) -> Iterator[None]:
        self._inside.append(_Place(layer.module, rounded=True))
        self._note()
        yield
        self._inside.pop()
        self._note()

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        if module in self._names:
            self._inside.append(_Place(module))
            self._note()

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if module in self._names:
            self._inside.pop()
            self._note()

    def _note(self) -> None:
        self._sequence.append(torch_private.next_node_number())
        self._owner.append(self._inside[-1])

    def _current(self) -> _Place:
        number = torch_private.running_node_number()
        if number is None or len(self._inside) > 1:  # forward, or forward again within backward (checkpointing)
            return self._inside[-1]
        place = bisect.bisect_right(self._sequence, number) - 1
        return self._owner[max(place, 0)]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch_private.writes_an_argument(func):
            for tensor in torch_private.tensors_in((args, kwargs)):
                self.before_write(tensor)
        result = func(*args, **kwargs)
        flops = _flops(func, args, kwargs, result)
        if flops:
            place = self._current()
            key = place, self._reason(place, func.overloadpacket.__name__)
            self._flops[key] = self._flops.get(key, 0) + flops
        return result

    def _reason(self, place: _Place, operation: str) -> str:
        """The reason why a product is not rounded; "" if it is."""
        if place.rounded:
            return ""
        if operation.startswith((*_BATCHED, *_ATTENTION)):
            return "product of two activations"
        known = self._left_out.get(self._names[place.module])
        if known is not None:
            return known
        if isinstance(place.module, nn.RNNCellBase):
            return "recurrent cell"
        if operation.startswith("convolution"):
            return "convolution"
        if isinstance(place.module, nn.Linear) and not isinstance(place.module, RoundedModule):
            return "nn.Linear itself, not quantised"
        return "no kind of layer that is rounded"

    def coverage(self, note: str) -> Coverage:
        rounded = sum(flops for (place, _), flops in self._flops.items() if place.rounded)
        left_out = [
            LeftOut(self._names[place.module] or "(the model itself)", _type(place.module), flops, reason)
            for (place, reason), flops in self._flops.items()
            if not place.rounded
        ]
        left_out.sort(key=lambda one: -one.flops)
        return Coverage(sum(self._flops.values()), rounded, tuple(left_out[:MOST_LISTED]), note)


def _flops(func: Any, args: Any, kwargs: Any, result: Any) -> int:
    """FLOPs of one operation; 0 if it is not a matrix product."""
    name = func.overloadpacket.__name__
    if name.startswith(_ATTENTION):
        backward = "backward" in name
        query, key, value = args[1:4] if backward else args[:3]  # (batch, head, time, channels)
        rows = query.shape[:-1].numel() * key.shape[-2]
        # two products forward and four backward; a fused kernel recomputes some to save memory, which does not count
        return 2 * rows * (query.shape[-1] + value.shape[-1]) * (2 if backward else 1)
    formula = flop_registry.get(func.overloadpacket)
    return 0 if formula is None else int(formula(*args, **kwargs, out_val=result))


def _type(module: nn.Module) -> str:
    """The class that the module has without rounding."""
    return (module.plain_class if isinstance(module, RoundedModule) else type(module)).__name__


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
