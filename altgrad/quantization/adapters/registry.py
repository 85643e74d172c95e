"""Which kinds of modules are rounded, and how: the table that `quantize_model` asks."""

from __future__ import annotations

from torch import nn
from torch.nn.parameter import UninitializedParameter

from altgrad.quantization.adapters.convolution import RoundedConvolution
from altgrad.quantization.adapters.experts import RoundedExperts
from altgrad.quantization.adapters.linear import RoundedOwnForward, RoundedTransposedLinear
from altgrad.quantization.adapters.multihead import RoundedMultiheadAttention
from altgrad.quantization.adapters.recurrent import RoundedRecurrent
from altgrad.quantization.adapters.rounded_module import RoundedModule
from altgrad.quantization.layers import QuantizedLinear

Adapter = type[RoundedModule]

# By class, or by the name of a class in a library that need not be installed.
_KINDS: dict[type[nn.Module] | str, Adapter] = {
    nn.Linear: QuantizedLinear,
    nn.Conv1d: RoundedConvolution,
    nn.Conv2d: RoundedConvolution,
    nn.Conv3d: RoundedConvolution,
    nn.MultiheadAttention: RoundedMultiheadAttention,
    nn.RNN: RoundedRecurrent,
    nn.LSTM: RoundedRecurrent,
    nn.GRU: RoundedRecurrent,
    "transformers.pytorch_utils.Conv1D": RoundedTransposedLinear,
}


def register_gemm(kind: type[nn.Module] | str, adapter: Adapter) -> None:
    """Round modules of a class from now on, through an adapter: one of this package, or your own.

    kind: a class, or its full name (`package.module.Class`) if the library need not be installed.  A layer of your own
    that computes as `nn.Linear` is `register_gemm(MyLinear, QuantizedLinear)`, one with weight (in, out)
    `register_gemm(MyConv1D, RoundedTransposedLinear)`.  Subclasses count as of that kind unless their forward pass is
    their own.
    Raises TypeError for an adapter that is no subclass of `RoundedModule`.
    """
    if not (isinstance(adapter, type) and issubclass(adapter, RoundedModule)):
        raise TypeError(f"register_gemm: {adapter!r} is no subclass of RoundedModule")
    _KINDS[kind] = adapter


def adapter_for(module: nn.Module) -> Adapter | str | None:
    """The adapter for a module; why it has none, in a few words, where it looks as if it should; None for any other."""
    for cls in type(module).__mro__:
        adapter = _KINDS.get(cls) or _KINDS.get(f"{cls.__module__}.{cls.__qualname__}")
        if adapter is None:
            continue
        if any(isinstance(parameter, UninitializedParameter) for parameter in module.parameters(recurse=False)):
            return "lazy, not initialised yet"
        if _forward_of(type(module)) is _forward_of(cls):
            return adapter
        if adapter is QuantizedLinear:
            return RoundedOwnForward
        return f"a subclass of {cls.__name__} with a forward pass of its own"
    return RoundedExperts if RoundedExperts.fits(module) else None


def _forward_of(cls: type) -> object:
    return getattr(cls, "forward", None)
