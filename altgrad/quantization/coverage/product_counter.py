"""Adds up the FLOPs of every matrix product that a model computes, by the module that computes it.

A product of the backward pass is attributed to the module whose forward pass made its autograd node.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import flop_registry

from altgrad import torch_private
from altgrad.config.cast import Gemm
from altgrad.quantization.adapters.attention import RoundedAttention
from altgrad.quantization.adapters.rounded_module import RoundedModule
from altgrad.quantization.coverage.share import TWO_ACTIVATIONS, Coverage, LeftOut
from altgrad.quantization.gemms.rounded_gemm import RoundedGemm
from altgrad.quantization.layers import gemms_of
from altgrad.torch_private import TorchDispatchMode

_BATCHED = ("bmm", "baddbmm")
_ATTENTION = ("_scaled_dot_product", "_flash_attention", "_efficient_attention")


class _Place(NamedTuple):
    """Where a product is computed: in a module, and there in a rounded product or outside of one (`gemm` is None)."""

    module: nn.Module
    gemm: RoundedGemm | None = None
    wanted: tuple[Gemm, ...] = ()  # of the rounded product's GEMMs, those that are computed in this step
    attention: bool = False  # within a product that `attention_gemms` would round


class ProductCounter(TorchDispatchMode):
    """Adds up the FLOPs of every product by place and reason."""

    def __init__(self, model: nn.Module, left_out: Mapping[str, str]) -> None:
        super().__init__()
        self._left_out = left_out
        self._names: dict[nn.Module, str] = {}
        for name, module in model.named_modules():
            self._names.setdefault(module, name)
        self.layers = gemms_of(model)
        self._watches: list[_AttentionWatch] = []
        self._inside: list[_Place] = [_Place(model)]
        self._sequence: list[int] = [0]  # autograd nodes from this sequence number on ...
        self._owner: list[_Place] = [_Place(model)]  # ... were made at this place
        self._flops: dict[tuple[_Place, str], int] = {}
        self._by_formats: dict[str, int] = {}
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
    def _multiplies(self, layer: RoundedGemm, wanted: tuple[Gemm, ...]) -> Iterator[None]:
        self._inside.append(_Place(layer.module, layer, wanted))
        self._note()
        try:
            yield
        finally:  # checkpointing stops a second forward pass by an exception as soon as it has what it needs
            self._inside.pop()
            self._note()

    @contextmanager
    def calls_of_attention(self) -> Iterator[None]:
        """Context of a call of `scaled_dot_product_attention`, in a module where `attention_gemms` finds it."""
        self._inside.append(self._inside[-1]._replace(attention=True))
        self._note()
        try:
            yield
        finally:
            self._inside.pop()
            self._note()

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        if module in self._names:
            self._inside.append(_Place(module))
            self._note()
            if RoundedAttention.fits(module):
                self._watches.append(_AttentionWatch(self))
                self._watches[-1].__enter__()

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if module in self._names:
            if RoundedAttention.fits(module):
                self._watches.pop().__exit__(None, None, None)
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
            if place.gemm is not None:
                self._note_formats(place.gemm, place.wanted, flops)
        return result

    def _note_formats(self, gemm: RoundedGemm, wanted: tuple[Gemm, ...], flops: int) -> None:
        """Backward, the products for both gradients cost the same, so that each has half of what the layer computes."""
        forward = torch_private.running_node_number() is None or len(self._inside) > 1
        parts = [part for part in wanted if (part == "fprop") == forward]
        for part in parts:
            name = " x ".join(dict.fromkeys(fmt.name for fmt in gemm.formats_in(part)))
            self._by_formats[name] = self._by_formats.get(name, 0) + flops // len(parts)

    def _reason(self, place: _Place, operation: str) -> str:
        """The reason why a product is not rounded; "" if it is."""
        if place.gemm is not None:
            return ""
        if operation.startswith((*_BATCHED, *_ATTENTION)):
            return TWO_ACTIVATIONS
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
        """What was counted; `note`: see `Coverage`."""
        attention = sum(flops for (place, reason), flops in self._flops.items() if _of_attention(place, reason))
        rounded = sum(flops for (place, _), flops in self._flops.items() if place.gemm is not None)
        plain: dict[tuple[nn.Module, str], int] = {}
        for (place, reason), flops in self._flops.items():
            if place.gemm is None:
                plain[place.module, reason] = plain.get((place.module, reason), 0) + flops
        left_out = [
            LeftOut(self._names[module] or "(the model itself)", _type(module), flops, reason)
            for (module, reason), flops in plain.items()
        ]
        left_out.sort(key=lambda one: -one.flops)
        formats = dict(sorted(self._by_formats.items(), key=lambda item: -item[1]))
        return Coverage(sum(self._flops.values()), rounded, tuple(left_out), note, formats, attention)


class _AttentionWatch(TorchFunctionMode):
    """Context in which a counter is told of the calls of `scaled_dot_product_attention`.

    It lasts as long as a module's forward pass: around `torch.autograd.grad` torch would leave it, and a forward pass
    that is repeated there (checkpointing) would go unseen.
    """

    def __init__(self, counter: ProductCounter) -> None:
        super().__init__()
        self._counter = counter

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        with self._counter.calls_of_attention():
            return func(*args, **(kwargs or {}))


def _of_attention(place: _Place, reason: str) -> bool:
    """Whether `attention_gemms` would round what is not rounded there."""
    inside = place.attention or isinstance(place.module, nn.MultiheadAttention)
    return inside and reason == TWO_ACTIVATIONS


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
