"""`make bench-peers`: time of other libraries to round 2^24 float32 values to E4M3, divided by that of `torch.clone`.

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
from torch import Tensor

from altgrad.formats import FORMATS
from altgrad.quantization.kernel.compiled import CompiledRounding
from altgrad.quantization.kernel.round import round_to_format
from bench.harness import MALLOC, malloc_setting, ratio
from bench.record import write_peers

_PAIRS = 5
Rounding = Callable[[Tensor], object]


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


def main() -> None:
    if "GLIBC_TUNABLES" not in os.environ:
        environment = os.environ | {"GLIBC_TUNABLES": MALLOC, "OMP_NUM_THREADS": "1"}
        os.execve(sys.executable, [sys.executable, "-m", "bench.peers", *sys.argv[1:]], environment)
    print(f"2^24 float32 to E4M3, x torch.clone; threads {torch.get_num_threads()}, malloc {malloc_setting()}")
    x = torch.randn(4096, 4096)
    rows: list[dict[str, object]] = []
    for name, (package, prepare) in PEERS.items():
        measured, note = None, ""
        try:
            round_it = prepare()
            with torch.no_grad():
                measured = statistics.median(ratio(lambda run=round_it: run(x), x.clone, _PAIRS))
        except (ImportError, AttributeError, TypeError, RuntimeError) as error:  # another library's version or build
            note = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        print(f"{name:32} {f'not measured: {note}' if measured is None else f'{measured:8.1f}'}", flush=True)
        rows.append({"name": name, "version": _version(package), "ratio": measured, "note": note})
    if "--write" in sys.argv[1:]:
        write_peers(rows, Path(__file__).parent)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()
