"""`make bench-peers`: what other libraries take for the same.

Rounding 2^24 float32 values to E4M3, divided by the time of `torch.clone`; and the training step of the tiny model in
MXFP8, divided by that of the plain compiled step.

A library that is not installed, or cannot be loaded here, is listed with the reason.  `--write` writes the table to
bench/README.md and peers.json.
"""

from __future__ import annotations

import importlib.metadata
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from altgrad.config.train_config import TrainConfig
from altgrad.formats import FORMATS
from altgrad.quantization.kernel.compiled import CompiledRounding
from altgrad.quantization.kernel.round import round_to_format
from altgrad.training.data import Batches
from altgrad.training.trainer import Trainer
from bench.harness import MALLOC, malloc_setting, ratio
from bench.record import write_peers
from bench.steps import TINY, bare_step, config, loop_step, plain_model

_PAIRS = 5
Rounding = Callable[[Tensor], object]
Step = Callable[[], object]


def _altgrad_compiled() -> Rounding:
    return CompiledRounding(FORMATS["E4M3"])


def _altgrad_blocks() -> Rounding:
    return CompiledRounding(FORMATS["E4M3"], granularity="1x32")


def _altgrad_eager() -> Rounding:
    return lambda x: round_to_format(x, FORMATS["E4M3"])


def _torch_cast() -> Rounding:
    return lambda x: x.to(torch.float8_e4m3fn).to(torch.float32)


def _ml_dtypes() -> Rounding:
    import ml_dtypes
    import numpy as np

    return lambda x: torch.from_numpy(x.numpy().astype(ml_dtypes.float8_e4m3fn).astype(np.float32))


def _gfloat() -> Rounding:
    from gfloat import RoundMode, round_ndarray
    from gfloat.formats import format_info_ocp_e4m3

    return lambda x: round_ndarray(format_info_ocp_e4m3, x.numpy(), RoundMode.TiesToEven, sat=True)


def _qtorch() -> Rounding:
    from qtorch.quant import float_quantize

    return lambda x: float_quantize(x, exp=4, man=3, rounding="nearest")


def _torchao() -> Rounding:
    from torchao.prototype.mx_formats.mx_tensor import MXTensor

    return lambda x: MXTensor.to_mx(x, torch.float8_e4m3fn, 32).dequantize(torch.float32)


def _brevitas() -> Rounding:
    from brevitas.nn import QuantIdentity
    from brevitas.quant.float import Fp8e4m3Act

    return QuantIdentity(Fp8e4m3Act).eval()


def _unit_scaling() -> Rounding:
    from unit_scaling.formats import FPFormat

    return FPFormat(4, 3).quantise


# name: (package, function that imports it and returns the rounding)
PEERS: dict[str, tuple[str, Callable[[], Rounding]]] = {
    "altgrad, compiled": ("altgrad", _altgrad_compiled),
    "altgrad, compiled, blocks of 32": ("altgrad", _altgrad_blocks),
    "altgrad, eager": ("altgrad", _altgrad_eager),
    "torch float8 cast, round trip": ("torch", _torch_cast),
    "ml_dtypes, round trip": ("ml_dtypes", _ml_dtypes),
    "gfloat": ("gfloat", _gfloat),
    "qtorch": ("qtorch", _qtorch),
    "torchao MX, blocks of 32": ("torchao", _torchao),
    "brevitas": ("brevitas", _brevitas),
    "unit-scaling": ("unit-scaling", _unit_scaling),
}


def _altgrad_step(settings: TrainConfig, batches: Batches) -> Step:
    return bare_step(settings, batches, quantised=True)


def _torchao_step(settings: TrainConfig, batches: Batches) -> Step:
    """The products of torchao's MXFP8 training layer, emulated: casts and products in torch's own operations."""
    model = plain_model(settings, batches)
    _emulate_mx(model)
    return loop_step(model, model, settings, batches)


def _torchao_compiled_step(settings: TrainConfig, batches: Batches) -> Step:
    model = plain_model(settings, batches)
    _emulate_mx(model)
    return loop_step(model, torch.compile(model, dynamic=False), settings, batches)


def _emulate_mx(model: nn.Module) -> None:
    from torchao.prototype.moe_training.mxfp8_linear import mx_mm
    from torchao.prototype.mx_formats import config as mx
    from torchao.quantization.quantize_.common.kernel_preference import KernelPreference

    kinds = (torch.float8_e4m3fn,) * 3
    kernels = mx.MXFP8Dim0CastKernelChoice.TORCH, mx.MXFP8Dim1CastKernelChoice.TORCH
    how = (32, KernelPreference.EMULATED, *kernels, mx.ScaleCalculationMode.RCEIL, False)

    class MxLinear(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = mx_mm.apply(x, self.weight, *kinds, *how)
            return y if self.bias is None else y + self.bias

    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = MxLinear


STEPS: dict[str, tuple[str, Callable[[TrainConfig, Batches], Step]]] = {
    "altgrad mxfp8, compiled": ("altgrad", _altgrad_step),
    "torchao MX, emulated": ("torchao", _torchao_step),
    "torchao MX, emulated, compiled": ("torchao", _torchao_compiled_step),
}


def main() -> None:
    if "GLIBC_TUNABLES" not in os.environ:
        environment = os.environ | {"GLIBC_TUNABLES": MALLOC, "OMP_NUM_THREADS": "1"}
        os.execve(sys.executable, [sys.executable, "-m", "bench.studies.peers", *sys.argv[1:]], environment)
    print(f"threads {torch.get_num_threads()}, malloc {malloc_setting()}\n2^24 float32 to E4M3, x torch.clone")
    x = torch.randn(4096, 4096)

    def rounding(prepare: Callable[[], Rounding]) -> list[float]:
        round_it = prepare()
        with torch.no_grad():
            return ratio(lambda: round_it(x), x.clone, _PAIRS)

    roundings = [_row(name, package, lambda p=prepare: rounding(p)) for name, (package, prepare) in PEERS.items()]
    print("training step, tiny, MXFP8, x plain compiled step")
    settings = config(recipe="mxfp8", **TINY)
    batches = Trainer(settings.altered(compile=False)).batches
    plain = bare_step(settings, batches, quantised=False)
    steps = [
        _row(name, package, lambda p=prepare: ratio(p(settings, batches), plain, _PAIRS))
        for name, (package, prepare) in STEPS.items()
    ]
    if "--write" in sys.argv[1:]:
        write_peers(roundings, steps, Path(__file__).parents[1])


def _row(name: str, package: str, measure: Callable[[], list[float]]) -> dict[str, object]:
    """The median of what `measure` returns, printed; or the reason why it could not be measured."""
    measured, note = None, ""
    try:
        measured = statistics.median(measure())
    except (ImportError, AttributeError, TypeError, RuntimeError) as error:  # another library's version or build
        note = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    print(f"{name:32} {f'not measured: {note}' if measured is None else f'{measured:8.1f}'}", flush=True)
    return {"name": name, "version": _version(package), "ratio": measured, "note": note}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()
